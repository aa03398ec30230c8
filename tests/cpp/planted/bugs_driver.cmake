# driver/: what the host driver lets pass, what the fault driver does at the wrong time, and the
# cuda driver over the stand-in.

# Changes nothing, and is in every program: a harness that calls everything caught is found out.
plant(canary driver/host_work.h
  [[fault_.store(status);]]
  [[fault_.store(status); /* nothing else */]])

plant(an_unmap_takes_part_of_a_mapping driver/host_address_space.cpp
  [[last->first + last->second.bytes == address + bytes]]
  [[last->first + last->second.bytes >= address + bytes]]
  conformance)
plant(an_unmap_passes_over_a_hole driver/host_address_space.cpp
  [[!covered(address, bytes, Access::none)]]
  [[!covered(address, 1, Access::none)]]
  conformance)
plant(addresses_are_freed_under_a_mapping driver/host_address_space.cpp
  [[mapped != mappings_.end() && mapped->first < address + bytes]]
  [[false]]
  conformance)
plant(part_of_a_reservation_is_freed driver/host_address_space.cpp
  [[it == reservations_.end() || it->second != bytes]]
  [[it == reservations_.end()]]
  conformance)
plant(a_page_is_mapped_over_another driver/host_address_space.cpp
  [[previous->first + previous->second.bytes > address]]
  [[previous->first + previous->second.bytes > address + bytes]]
  conformance)
plant(a_page_is_mapped_beyond_its_reservation driver/host_address_space.cpp
  [[!reserved(address, bytes)]]
  [[!reserved(address, 1)]]
  conformance)
plant(a_released_page_is_used driver/host_address_space.cpp
  [[pages_.erase(page) == 1]]
  [[pages_.contains(page)]]
  conformance)
plant(a_fresh_page_is_clean driver/host_address_space.cpp
  [[std::memset(view, poison, bytes);]]
  [[]]
  host_device mapping)
plant(a_page_is_used_without_access driver/host_address_space.cpp
  [[it->second.access < wanted]]
  [[false]]
  host_device BY crash)
plant(an_address_is_used_after_its_unmap driver/host_address_space.h
  [[if (!covered(address, bytes, wanted)) return Status::illegal_address;
    return work();]]
  [[return work();]]
  host_device@host/stepped BY crash)
plant(host_memory_is_used_after_its_unregistration driver/host_address_space.h
  [[if (!covered(memory, bytes)) return Status::illegal_address;]]
  [[]]
  host_device@host/stepped)
plant(host_memory_is_copied_unregistered driver/host_work.h
  [[!registry_.holds(memory, bytes)]]
  [[false]]
  host_device)
plant(a_forked_child_is_answered driver/host.cpp
  [[getpid() != process_]]
  [[false]]
  conformance@host/stepped host_device@host/stepped)
plant(a_fault_is_forgotten driver/host.cpp
  [[return fault == Status::success ? status : fault;]]
  [[return status;]]
  host_device@host/stepped)
plant(the_head_of_a_copy_is_longer_than_it driver/host_copy.cpp
  [[std::min(bytes, (0 - address) % line_bytes)]]
  [[(line_bytes - address % line_bytes) % line_bytes]]
  host_copy BY crash)
plant(the_lines_of_a_copy_begin_anywhere driver/host_copy.cpp
  [[(0 - address) % line_bytes]]
  [[address % line_bytes]]
  host_copy BY crash)
plant(the_head_of_a_copy_is_lost driver/host_copy.cpp
  [[std::memcpy(destination, source, head);]]
  [[]]
  host_copy)
plant(the_lines_of_a_copy_are_those_of_its_head driver/host_copy.cpp
  [[lines(destination + head, source + head, whole);]]
  [[lines(destination + head, source, whole);]]
  host_copy)
plant(the_tail_of_a_copy_is_lost driver/host_copy.cpp
  [[std::memcpy(destination + done, source + done, bytes - done);]]
  [[]]
  host_copy)
plant(the_tail_of_a_copy_is_a_whole_line driver/host_copy.cpp
  [[bytes - done]]
  [[(bytes - done + line_bytes - 1) / line_bytes * line_bytes]]
  host_copy)
plant(a_quarter_of_a_line_is_copied_twice driver/host_copy.cpp
  [[GPUPOOL_STREAM_128(to + 3, fourth);]]
  [[GPUPOOL_STREAM_128(to + 3, third);]]
  host_copy)
plant(half_of_a_line_is_lost driver/host_copy.cpp
  [[GPUPOOL_STREAM_256(to + 1, high);]]
  [[]]
  host_copy)
plant(a_large_copy_is_cut_to_whole_lines driver/host_copy.cpp
  [[path.run(static_cast<std::byte*>(destination), static_cast<const std::byte*>(source), bytes);]]
  [[path.run(static_cast<std::byte*>(destination), static_cast<const std::byte*>(source),
             bytes < streaming_bytes ? bytes : bytes / line_bytes * line_bytes);]]
  host_copy)
plant(a_synchronised_stream_still_runs driver/host_threads.cpp
  [[state->queue.empty() && !state->running]]
  [[state->queue.empty()]]
  host_device)
plant(an_event_is_complete_at_once driver/host_threads.cpp
  [[std::lock_guard lock(mutex_);
  return complete_;]]
  [[return true;]]
  conformance)
plant(a_wait_takes_a_later_record driver/host_ops.h
  [[kind != Kind::wait || record->complete()]]
  [[true]]
  stepped)
plant(the_call_after_the_nth_fails driver/fault.cpp
  [[remaining_ > 1]]
  [[remaining_ > 0]]
  mapping)
plant(a_single_fault_stays driver/fault.cpp
  [[if (!persistent_) armed_ = false;]]
  [[]]
  mapping)
plant(a_release_fails_too driver/fault.cpp
  [[!releases_ && releases(call)]]
  [[false]]
  mapping)
plant(the_context_of_others_is_lost driver/cuda.cpp
  [[static_cast<void>(cu_.cuCtxSetCurrent(previous));]]
  [[]]
  cuda_driver@cuda)
plant(a_call_runs_in_the_context_of_others driver/cuda.cpp
  [[cu_.cuCtxSetCurrent(context_)]]
  [[cu_.cuCtxSetCurrent(*previous)]]
  cuda_driver@cuda)
plant(copies_wait_for_the_default_stream driver/cuda.cpp
  [[stream_non_blocking]]
  [[0]]
  cuda_driver@cuda)
plant(pinned_memory_is_of_one_context driver/cuda.cpp
  [[host_register_flags]]
  [[0]]
  cuda_driver@cuda)
plant(events_take_times driver/cuda.cpp
  [[event_disable_timing]]
  [[0u]]
  cuda_driver@cuda)
plant(a_wait_for_an_event_spins driver/cuda.cpp
  [[event_blocking_sync]]
  [[0u]]
  cuda_driver@cuda)
plant(addresses_are_aligned_by_chance driver/cuda.cpp
  [[cu_.cuMemAddressReserve(address, bytes, alignment, 0, 0)]]
  [[cu_.cuMemAddressReserve(address, bytes, 0, 0, 0)]]
  cuda_driver@cuda)
plant(a_capture_of_another_thread_is_broken driver/cuda.cpp
  [[capture_mode_relaxed]]
  [[capture_mode_global]]
  cuda_driver@cuda)
plant(the_capture_mode_of_a_thread_is_lost driver/cuda.cpp
  [[static_cast<void>(cu_.cuThreadExchangeStreamCaptureMode(&mode));]]
  [[]]
  cuda_driver@cuda)
plant(an_exported_page_goes_to_other_programs driver/cuda.cpp
  [[fcntl(own, F_SETFD, FD_CLOEXEC) != 0]]
  [[false]]
  cuda_driver@cuda)
plant(a_full_trace_takes_tracks driver/trace.cpp
  [[events_.size() >= capacity_]]
  [[false]]
  trace_record)
plant(a_chosen_call_fails_for_ever driver/fault.cpp
  [[if (kind.count != every_call) --kind.count;]]
  [[]]
  in_flight@host/stepped)
plant(memory_that_is_not_there_is_registered driver/host_address_space.cpp
  [[!mapped_throughout(start, bytes)]]
  [[false]]
  conformance)
plant(a_registration_looks_at_its_first_bytes_alone driver/host_address_space.cpp
  [[into + bytes]]
  [[into + 1]]
  conformance)
plant(a_digest_is_of_one_piece_less driver/host_work.h
  [[bytes / digest_piece_bytes + (bytes % digest_piece_bytes != 0)]]
  [[std::max<std::size_t>(1, bytes / digest_piece_bytes)]]
  conformance)
plant(a_digest_is_made_of_the_piece_before driver/host_work.h
  [[gpupool::digest(pointer(device + piece), length)]]
  [[gpupool::digest(pointer(device + (i > 0 ? piece - digest_piece_bytes : 0)), length)]]
  conformance)
plant(a_copy_with_a_digest_only_digests driver/host_work.h
  [[copy_with_digest(pointer(device + piece), from + piece, length)]]
  [[gpupool::digest(from + piece, length)]]
  conformance)
plant(sums_go_where_nothing_is_registered driver/host_work.h
  [[registry_.holds(sums, pieces_in(bytes) * sizeof(*sums))]]
  [[true]]
  host_digest)
plant(what_nobody_may_touch_is_digested driver/host_work.h
  [[space_.accessible(device, bytes, access) ? Status::success : Status::invalid_value]]
  [[Status::success]]
  host_digest)
plant(a_copy_with_a_digest_is_of_unregistered_memory driver/host.cpp
  [[if (!registry_.holds(source, bytes)) return Status::invalid_value;]]
  [[]]
  host_digest)
plant(sums_go_where_nothing_is_registered_any_more driver/host_work.h
  [[registry_.touch(sums + begin, sum_bytes, run)]]
  [[run()]]
  host_digest)
plant(a_copy_with_a_digest_reads_what_was_unregistered driver/host_work.h
  [[registry_.touch(sums + begin, sum_bytes, from + at, n, run)]]
  [[registry_.touch(static_cast<const void*>(sums + begin), sum_bytes, run)]]
  host_digest)
plant(a_module_outlives_its_driver driver/cuda_digest.cpp
  [[module == nullptr ? 0 : cu.cuModuleUnload(module)]]
  [[static_cast<Result>(module == nullptr)]]
  cuda_driver@cuda)
plant(a_launch_has_a_block_less driver/cuda_digest.cpp
  [[static_cast<std::size_t>(bytes % digest_piece_bytes != 0)]]
  [[std::size_t{0}]]
  conformance@cuda)
plant(a_digest_on_cuda_copies_nothing driver/cuda.cpp
  [[if (result != 0) return result;
      return digest_kernel_.launch(cu_, destination, bytes, sums, native(stream));]]
  [[return result;]]
  conformance@cuda)
plant(runs_have_the_digest_of_the_first driver/host_work.h
  [[gpupool::digest(pointer(run.address), run.bytes)]]
  [[gpupool::digest(pointer(runs[begin].address), runs[begin].bytes)]]
  conformance)
plant(a_run_of_nothing_is_digested driver/host_work.h
  [[run->bytes == 0]]
  [[false]]
  host_digest)
plant(runs_that_nobody_may_touch_are_digested driver/host_work.h
  [[!space_.accessible(run->address, run->bytes, Access::read)]]
  [[false]]
  host_digest)
plant(a_table_of_runs_is_not_registered driver/host_work.h
  [[!registry_.holds(runs, count * sizeof(*runs))]]
  [[false]]
  host_digest)
plant(a_launch_of_runs_has_one_less driver/cuda_digest.cpp
  [[static_cast<unsigned>(count)]]
  [[static_cast<unsigned>(count > 1 ? count - 1 : count)]]
  conformance@cuda)
