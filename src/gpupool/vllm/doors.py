"""Every public method of a vLLM worker, and what it does to device memory.

A test holds this against the installed vLLM: a method that is not classified fails it.
"""

from __future__ import annotations

# Open and close steps; written out in the worker.
STEP = frozenset({"execute_model", "sample_tokens"})

# Run while the engine is being built, before anything can be swapped out, or swap by themselves.
LIFECYCLE = frozenset(
    {
        "init_device",
        "load_model",
        "initialize_from_config",
        "determine_available_memory",
        "compile_or_warm_up_model",
        "shutdown",
        "sleep",
        "sleep_mode_backend",
        "wake_up",
        "discard",
        "resident",
    }
)

# Read or run the model; it is brought in for the length of the call.
READS = frozenset(
    {
        "compute_weight_checksums",
        "execute_dummy_batch",
        "save_sharded_state",
        "save_tensorized_model",
        "take_draft_token_ids",
    }
)

# May change weights or buffers: brought in, and all of the weights are saved at the next swap-out.
WRITES = frozenset(
    {
        "add_lora",
        "apply_model",
        "elastic_ep_execute",
        "finish_weight_update",
        "handle_ft_command",
        "init_weight_transfer_engine",
        "pin_lora",
        "reload_weights",
        "remove_lora",
        "reset_weights",
        "shutdown_weight_transfer_engine",
        "start_draft_weight_update",
        "start_weight_update",
        "update_weights",
    }
)

# Of those, what may take longer than any step: files are read or written, or all weights looked at.
LASTING = WRITES | {"compute_weight_checksums", "save_sharded_state", "save_tensorized_model"}

# Touch no memory of the pool.
FREE = frozenset(
    {
        "annotate_profile",
        "check_health",
        "checkpoint_prepare",
        "checkpoint_restore",
        "get_cache_block_size_bytes",
        "get_compilation_match_table",
        "get_draft_model",
        "get_encoder_timing_stats",
        "get_kv_cache_spec",
        "get_kv_connector_handshake_metadata",
        "get_model",
        "get_model_inspection",
        "get_simple_cpu_offload_num_cpu_blocks",
        "get_supported_kv_cache_layouts",
        "get_supported_tasks",
        "list_loras",
        "profile",
        "randomize_dummy_inputs",
        "release_late_interaction_query_cache",
        "reset_encoder_cache",
        "reset_mm_cache",
        "set_kv_cache_layout",
        "supports_draft_weight_updates",
        "synchronize_device",
        "update_config",
        "update_max_model_len",
        "vocab_size",
    }
)
