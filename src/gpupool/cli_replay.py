"""``gpupool replay``: decide again what a daemon's policy decided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec

from gpupool.live import POLICIES
from gpupool.schedule.recording import Decided, differing, from_line
from gpupool.schedule.timeline import trace_events

_SHOWN_MAX = 5


@click.command()
@click.argument("recording", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--trace",
    "trace_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Write turns and switches, and why each was, as a Chrome trace, for ui.perfetto.dev.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures, for machines.")
@click.pass_context
def replay(context: click.Context, recording: Path, trace_path: Path | None, as_json: bool) -> None:
    """Decide again what is in RECORDING, which 'gpupool daemon --record' wrote.

    The policies are functions of what was known: from the same state, at the same time, the same
    must come out. Ends with 1 if something does not, as after a change of the policy.
    """
    policy = ""
    decisions = switches = 0
    differ: list[str] = []
    for number, (line, decided) in enumerate(_read(recording), 1):
        if line not in POLICIES:
            raise click.ClickException(f"{recording}: there is no policy {line!r}")
        policy, decisions = line, number
        with _understood(recording, number):
            switches += sum(action[0] == "Switch" for action in decided.actions)
            for _, before, now in differing([decided], POLICIES[policy]):
                differ.append(f"decision {decisions}: {before.actions} is {now} now")
    if trace_path is not None:
        with _understood(recording, 0):
            events = list(trace_events(decided for _, decided in _read(recording)))
        try:
            trace_path.write_bytes(msgspec.json.encode({"traceEvents": events}))
        except OSError as error:
            raise click.ClickException(f"{trace_path} cannot be written: {error}") from None
    if as_json:
        figures = {"policy": policy, "decisions": decisions, "switches": switches}
        click.echo(msgspec.json.encode({**figures, "differing": len(differ)}))
    else:
        click.echo(
            f"{policy or 'empty'}: {decisions} decisions, {switches} switches, "
            f"{len(differ)} decided otherwise now"
        )
        for text in differ[:_SHOWN_MAX]:
            click.echo(text)
    context.exit(int(bool(differ)))


def _read(path: Path) -> Iterator[tuple[str, Decided]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                click.echo(f"{path}, line {number}: is cut off, and left out", err=True)
                return
            with _understood(path, number):
                found = from_line(line)
            yield found


@contextmanager
def _understood(path: Path, number: int) -> Iterator[None]:
    """Lines that somebody changed, or that were cut, are no decisions."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise click.ClickException(f"{path}, line {number}: is no decision ({error!r})") from None
