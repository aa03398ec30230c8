"""What gpupool rests on in vLLM, held against its sources: ``python -m gpupool.vllm.hooks``."""
