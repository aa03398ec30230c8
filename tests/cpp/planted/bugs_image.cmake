# image/ and transfer/: pinned memory, sets of runs, copies in chunks.
plant(a_refused_registration_leaves_the_others image/host_memory.cpp
  [[take_back(before);]]
  [[]]
  host_memory)
plant(registrations_overlap image/host_memory.cpp
  [[driver_->host_register(data_ + at, piece.bytes())]]
  [[driver_->host_register(data_ + (at > 0 ? at - 4096 : 0), piece.bytes())]]
  host_memory)
plant(a_registration_is_a_byte_short image/host_memory.cpp
  [[driver_->host_register(data_ + at, piece.bytes())]]
  [[driver_->host_register(data_ + at, piece.end - at - 1)]]
  host_memory)
plant(a_registration_is_not_taken_back image/host_memory.cpp
  [[pieces_.size() > first]]
  [[pieces_.size() > first + 1]]
  host_memory)
plant(memory_still_registered_is_unmapped image/host_memory.cpp
  [[if (!stuck_ && data_ != nullptr) munmap(std::exchange(data_, nullptr), capacity_bytes_);]]
  [[munmap(data_, capacity_bytes_); data_ = nullptr;]]
  host_memory)
plant(an_image_that_the_driver_keeps_is_called_gone image/host_memory.cpp
  [[let_go() && gone_bytes_]]
  [[(let_go(), gone_bytes_ != nullptr)]]
  model_memory)
plant(a_failed_growth_keeps_its_file_mapped image/host_memory.cpp
  [[static_cast<void>(map_nothing(data_ + bytes_, bytes));]]
  [[]]
  host_memory)
plant(memory_still_registered_grows image/host_memory.cpp
  [[if (stuck_) throw UsageError("host memory that is still registered from a failure cannot grow");]]
  [[]]
  host_memory)
plant(a_descriptor_a_page_short_is_taken image/host_memory.cpp
  [[extent.bytes <= size]]
  [[extent.bytes <= size + 4096]]
  host_memory)

plant(a_copy_crosses_registrations image/host_memory.cpp
  [[std::min(run.end, piece.end)]]
  [[run.end]]
  host_memory)
plant(a_run_behind_another_stays_apart image/run_set.cpp
  [[std::prev(it)->second >= run.begin]]
  [[std::prev(it)->second > run.begin]]
  run_set)
plant(a_run_before_another_stays_apart image/run_set.cpp
  [[next->first <= it->second]]
  [[next->first < it->second]]
  run_set)
plant(a_shorter_run_cuts_a_longer_one image/run_set.cpp
  [[it->second = std::max(it->second, run.end);]]
  [[it->second = run.end;]]
  run_set)
plant(a_cut_leaves_an_empty_run image/run_set.cpp
  [[it->second <= at]]
  [[it->second < at]]
  run_set)
plant(a_removal_is_a_run_short image/run_set.cpp
  [[runs_.lower_bound(run.begin)]]
  [[runs_.upper_bound(run.begin)]]
  run_set)
plant(the_gap_at_the_end_is_missing image/run_set.cpp
  [[if (at < bytes) all.push_back({at, bytes});]]
  [[]]
  run_set)
plant(a_gap_reaches_beyond_the_end image/run_set.cpp
  [[std::min(begin, bytes)]]
  [[begin]]
  run_set)

plant(the_last_chunk_in_is_lost transfer/transfer.cpp
  [[GPUPOOL_CALL(driver_, copy_to_device, destination + at, source + at, n, stream_);]]
  [[if (n == chunk_bytes_) GPUPOOL_CALL(driver_, copy_to_device, destination + at, source + at, n, stream_);]]
  transfer)
plant(every_chunk_out_is_the_first transfer/transfer.cpp
  [[GPUPOOL_CALL(driver_, copy_to_host, destination + at, source + at, n, stream_);]]
  [[GPUPOOL_CALL(driver_, copy_to_host, destination + at, source, n, stream_);]]
  transfer)
plant(a_fill_is_a_byte_short transfer/transfer.cpp
  [[GPUPOOL_CALL(driver_, fill, destination, value, bytes, stream_);]]
  [[GPUPOOL_CALL(driver_, fill, destination, value, bytes - 1, stream_);]]
  transfer)
plant(an_event_is_never_recorded transfer/transfer.cpp
  [[GPUPOOL_CALL(driver_, event_record, event.handle(), stream_);]]
  [[static_cast<void>(event);]]
  schedules_copies)
plant(an_event_is_done_before_it_is transfer/transfer.cpp
  [[if (status == Status::not_ready) return false;]]
  [[if (status == Status::not_ready) return true;]]
  schedules_copies)
plant(a_cancelled_copy_goes_on transfer/lanes.cpp
  [[window_->stop_.stop_requested()]]
  [[false]]
  transfer)
plant(the_last_page_is_not_scrubbed transfer/scrub.cpp
  [[stream_.fill(reservation_->address(), 0, pages.size() * pool_->page_bytes());]]
  [[stream_.fill(reservation_->address(), 0, (pages.size() - 1) * pool_->page_bytes());]]
  scrub)
plant(pages_of_a_failed_scrub_are_lost transfer/scrub.cpp
  [[if (withheld_.empty()) pool_->end_scrub(pages, false);]]
  [[]]
  scrub BY time)
plant(what_a_scrubber_that_ends_unmapped_stays_withheld transfer/scrub.cpp
  [[// But for those that stay mapped: they are in doubt.
  pool_->release(withheld_);]]
  [[]]
  scrub)
plant(what_was_withheld_waits_for_a_page transfer/scrub.cpp
  [[let_go();
  pool_->begin_scrub_owned(owner, pages);]]
  [[pool_->begin_scrub_owned((owner), pages);]]
  scrub)
plant(two_threads_scrub_at_once transfer/scrub.cpp
  [[pool_->begin_scrub_owned(owner, pages);]]
  [[mutex_.unlock(); pool_->begin_scrub_owned((owner), pages);]]
  scrub)
plant(a_lane_is_not_waited_for_after_another_failed transfer/lanes.cpp
  [[if (!first) first = std::current_exception();]]
  [[throw;]]
  transfer)
plant(a_window_has_one_chunk_in_flight transfer/lanes.cpp
  [[events->turn = !events->turn;]]
  [[]]
  in_flight@host/stepped)
plant(a_file_stays_mapped_for_want_of_memory image/host_memory.cpp
  [[if (huge) put_huge_pages(extent.fd, data_ + bytes_, bytes);]]
  [[if (bytes <= available_bytes()) put_huge_pages(extent.fd, data_ + bytes_, bytes);]]
  grow_memory)
plant(what_a_copy_in_flight_touches_is_unpinned image/host_memory.cpp
  [[pieces_.clear();]]
  [[]]
  in_flight@host/stepped)
plant(others_go_on_when_the_system_refuses_huge_pages driver/system_memory.cpp
  [[if (!put(const_cast<std::byte*>(view + at), at)) next = pages;]]
  [[put(const_cast<std::byte*>(view + at), at);]]
  huge_pages)
plant(nothing_is_put_where_there_are_no_huge_pages driver/system_memory.cpp
  [[return put_small_pages(fd, memory, at);]]
  [[return false;]]
  huge_pages)
plant(huge_pages_are_asked_for_where_none_can_lie driver/system_memory.cpp
  [[reinterpret_cast<std::uintptr_t>(view) % huge_page_bytes == 0]]
  [[true]]
  huge_pages)
plant(small_pages_are_touched_that_cannot_be_had driver/system_memory.cpp
  [[errno != EINVAL || fallocate(fd, 0, static_cast<off_t>(at), huge_page_bytes) != 0]]
  [[errno != EINVAL]]
  huge_pages)
plant(the_last_huge_page_is_left_out driver/system_memory.cpp
  [[bytes / huge_page_bytes]]
  [[bytes / huge_page_bytes / 2]]
  huge_pages)
