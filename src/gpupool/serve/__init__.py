"""One OpenAI-compatible address in front of many vLLM engines that share one memory pool."""
