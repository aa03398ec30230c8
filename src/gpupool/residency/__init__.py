"""How a model's memory comes and goes: whole, early while others leave, or ahead of its use."""

from gpupool.residency.adding import add_region
from gpupool.residency.ahead import Ahead
from gpupool.residency.residency import Residency
from gpupool.residency.resident import Resident, State
from gpupool.residency.resizing import resize
from gpupool.residency.sleeper import Sleeper

__all__ = ["Ahead", "Residency", "Resident", "Sleeper", "State", "add_region", "resize"]
