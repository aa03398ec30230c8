# swap/: what comes back when a model does, and what state a failure leaves.
plant(the_last_partial_page_is_not_zeroed swap/arrivals.cpp
  [[region.saved_.gaps(region.span_bytes())]]
  [[region.saved_.gaps(region.bytes())]]
  model_memory)
plant(saved_bytes_do_not_come_back transfer/lanes.cpp
  [[stream.to_device(destination, source, bytes);]]
  [[]]
  verify)
plant(saved_bytes_are_only_digested transfer/lanes.cpp
  [[stream.to_device_digest(destination, source, bytes, sums);]]
  [[stream.digest(destination, bytes, sums);]]
  verify)
plant(what_arrived_wrong_is_let_in swap/loads.cpp
  [[*sum != load.region->digests_.of(piece)]]
  [[false]]
  verify)
plant(what_arrived_wrong_twice_is_let_in swap/loads.cpp
  [[*load.sums == load.region->digests_.of(load.run)]]
  [[true]]
  verify)
plant(the_same_sample_is_taken_each_time swap/loads.cpp
  [[(i + turn) % sampled_one_in == 0]]
  [[i % sampled_one_in == 0]]
  verify)
plant(the_sums_of_a_copy_are_those_of_the_one_before swap/loads.cpp
  [[next += pieces_in(loads[i].run, piece_bytes_);]]
  [[]]
  verify)
plant(a_copy_goes_from_one_registration_into_another swap/loads.cpp
  [[region.image_->cut({last->begin, piece.end}).size() == 1]]
  [[true]]
  large_loads)
plant(the_second_piece_of_a_copy_is_held_against_the_first swap/loads.cpp
  [[++sum;]]
  [[]]
  large_loads)
plant(pieces_are_never_copied_together swap/loads.cpp
  [[last->end = piece.end;]]
  [[loads.push_back({&region, piece, nullptr, is_there});]]
  large_loads)
plant(a_copy_begins_within_a_piece swap/loads.cpp
  [[last->begin % piece_bytes_ == 0]]
  [[true]]
  large_loads)
plant(there_is_no_room_for_more_sums swap/loads.cpp
  [[(!sums_ || sums_->bytes() < bytes)]]
  [[!sums_]]
  large_loads BY crash)
plant(damage_that_a_resize_cuts_is_blessed swap/resize.cpp
  [[throw damaged(region, piece, "");]]
  [[]]
  verify)
plant(a_piece_that_a_resize_cuts_is_not_saved_anew swap/resize.cpp
  [[written.add({piece.begin, bytes});]]
  [[]]
  verify)
plant(a_cut_piece_without_a_digest_gets_none swap/resize.cpp
  [[verify_ == Verify::off || piece.begin >= bytes]]
  [[!region.digests_.of(piece) || piece.begin >= bytes]]
  verify)
plant(a_piece_that_did_not_change_is_saved swap/saves.cpp
  [[save.digests.of(piece) == now]]
  [[false]]
  verify)
plant(half_a_save_is_taken_for_one swap/saves.cpp
  [[save.region->digests_.forget(piece);]]
  [[]]
  verify)
plant(a_shorter_piece_has_the_digest_of_the_longer image/piece_digests.cpp
  [[it->second.end != piece.end]]
  [[false]]
  verify)
plant(pages_are_zeroed_on_another_stream swap/loads.cpp
  [[in_.fill(regions_[i]->address() + run.begin, 0, run.bytes());]]
  [[out_.fill(regions_[i]->address() + run.begin, 0, run.bytes());]]
  model_memory@host/stepped)
plant(fresh_weights_are_taken_for_saved swap/regions.cpp
  [[if (tag == Tag::weights) written_.add({0, bytes});]]
  [[]]
  model_memory)
plant(what_was_written_is_forgotten_before_it_is_copied swap/saves.cpp
  [[save.saved.add(region->written_);]]
  [[save.saved.add(std::exchange(region->written_, RunSet()));]]
  faults)
plant(what_was_written_is_copied_for_ever swap/saves.cpp
  [[region->saved_.add(region->written_);
    region->written_.clear();]]
  [[region->saved_.add(region->written_);]]
  verify)
plant(the_runtime_is_not_saved swap/saves.cpp
  [[region->tag_ == Tag::runtime || region->tag_ == Tag::cudagraph]]
  [[region->tag_ == Tag::cudagraph]]
  model_memory)
plant(the_graphs_are_not_saved swap/saves.cpp
  [[region->written_.add({0, region->bytes()});]]
  [[if (region->tag_ == Tag::runtime) region->written_.add({0, region->bytes()});]]
  model_memory)
plant(every_page_is_the_first swap/placement.cpp
  [[is_clean[i] ? next_clean++ : next_dirty++]]
  [[is_clean[i] ? next_clean++ : clean]]
  model_memory)
plant(a_region_is_a_page_longer swap/regions.cpp
  [[(bytes_ + page_bytes_ - 1) / page_bytes_ * page_bytes_]]
  [[(bytes_ + page_bytes_) / page_bytes_ * page_bytes_]]
  model_memory)
plant(pages_of_another_size_are_taken swap/resize.cpp
  [[page != nullptr && page->bytes() == page_bytes_]]
  [[page != nullptr]]
  model_memory)
plant(a_page_too_many_is_taken swap/resize.cpp
  [[pages.size() != count]]
  [[pages.size() < count]]
  model_memory)
plant(a_mark_is_ignored swap/swap.cpp
  [[for (const Run& run : runs) region.written_.add(run);]]
  [[]]
  model_memory)
plant(a_mark_beyond_the_end_is_taken swap/resize.cpp
  [[run.end > region.bytes()]]
  [[run.end > region.span_bytes()]]
  model_memory)
plant(no_piece_of_an_image_is_known swap/swap.cpp
  [[known.emplace_back(piece, *digest);]]
  [[]]
  verify)
plant(a_region_without_an_image_is_asked_for_digests swap/swap.cpp
  [[if (!region.image_) throw UsageError("a region without an image has no digests");]]
  [[]]
  verify BY crash)
plant(an_adopted_image_is_overwritten swap/swap.cpp
  [[region.written_.clear();]]
  [[]]
  verify)
plant(a_failed_unmap_is_not_undone swap/departures.cpp
  [[mapping->map();]]
  [[]]
  faults)
plant(a_torn_state_is_forgotten swap/arrivals.cpp
  [[unmap_until(before);
      state_ = State::out;]]
  [[state_ = State::out;
      unmap_until(before);]]
  faults)
plant(what_is_to_be_saved_goes_with_the_rest swap/departures.cpp
  [[std::count(left.begin(), left.end(), region) == 0]]
  [[true]]
  drain)
plant(what_has_gone_is_marked_again swap/saves.cpp
  [[always && state_ == State::resident]]
  [[always]]
  drain)
plant(what_a_drain_has_left_is_not_saved swap/departures.cpp
  [[state_ != State::torn || drains_]]
  [[state_ == State::resident]]
  drain)
plant(a_torn_model_is_not_saved_from swap/departures.cpp
  [[state_ != State::torn || drains_]]
  [[state_ != State::torn]]
  drain)
plant(what_has_gone_is_kept swap/departures.cpp
  [[keep = std::min(keep, drained_keep_);]]
  [[]]
  drain)
plant(what_was_drained_is_not_reported swap/departures.cpp
  [[report = std::exchange(drained_, {}) + report;]]
  [[]]
  drain)
plant(what_goes_may_be_in_use swap/departures.cpp
  [[// Kernels of others, torch's among them, may still use what is about to go.
    GPUPOOL_CALL(driver_, context_synchronize);]]
  [[]]
  schedules@host/stepped)
plant(what_failed_as_it_left_may_be_in_flight swap/saves.cpp
  [[if (state_ == State::leaving) state_ = State::torn;]]
  [[]]
  drain)
plant(a_torn_model_is_called_out swap/swap.cpp
  [[return state == State::torn || state == State::leaving;]]
  [[return false;]]
  faults)

plant(a_clean_page_is_zeroed swap/placement.cpp
  [[if (clean[i]) left.remove({i * page_bytes, (i + 1) * page_bytes});]]
  [[]]
  placement)
plant(a_page_beside_a_clean_one_is_not_zeroed swap/placement.cpp
  [[(i + 1) * page_bytes]]
  [[(i + 2) * page_bytes]]
  placement)
plant(clean_pages_are_wasted swap/placement.cpp
  [[any_clean && (wants[i] || !any_dirty)]]
  [[any_clean]]
  placement)
plant(what_a_region_lost_comes_back swap/resize.cpp
  [[saved.remove({bytes, before});]]
  [[]]
  resize)
plant(what_a_region_lost_is_saved swap/resize.cpp
  [[written.remove({bytes, before});]]
  [[]]
  resize)
plant(weights_grown_are_not_saved swap/resize.cpp
  [[written.add({before, bytes});]]
  [[]]
  resize)
plant(the_page_grown_into_is_not_zeroed swap/resize.cpp
  [[in_.fill(base + before, 0, std::min(bytes, span_before) - before);]]
  [[]]
  resize)
plant(new_pages_are_not_zeroed swap/resize.cpp
  [[in_.fill(base + dirty_from, 0, dirty_bytes);]]
  [[]]
  resize)
plant(a_shrunk_region_keeps_a_page_less swap/resize.cpp
  [[region.mapping_->shrink((bytes + page_bytes_ - 1) / page_bytes_)]]
  [[region.mapping_->shrink(std::max(bytes / page_bytes_, std::size_t{1}))]]
  resize)
plant(the_region_of_another_model_is_taken swap/resize.cpp
  [[!found]]
  [[false]]
  resize)
plant(what_a_region_loses_stays_in_its_arena swap/resize.cpp
  [[if (arena && bytes < before) arena->set_limit(bytes);]]
  [[]]
  arena_slots)
plant(a_resized_arena_has_no_memory swap/resize.cpp
  [[if (arena) arena->prepare_limit();]]
  [[]]
  resize_memory)
plant(a_failed_growth_keeps_its_pages_behind swap/resize.cpp
  [[region.mapping_->shrink(span_before / page_bytes_);]]
  [[]]
  resize)
plant(a_page_is_taken_twice swap/resize.cpp
  [[if (twice) throw UsageError("a page is named twice, or is behind this model already");]]
  [[]]
  model_memory)
plant(a_page_of_another_device_is_taken swap/resize.cpp
  [[page->driver() != driver_]]
  [[false]]
  model_memory)
plant(a_model_goes_before_its_copies swap/swap.cpp
  [[!any_mapped || ended()]]
  [[true]]
  in_flight@host/stepped)
plant(a_model_goes_before_the_kernels_of_others swap/swap.cpp
  [[state_ == State::resident ? device_ended(*driver_) : in_.ended() && out_.ended()]]
  [[in_.ended() && out_.ended()]]
  in_flight@host/stepped)
plant(the_image_of_a_copy_in_flight_goes swap/swap.cpp
  [[if (region->image_) region->image_->abandon();]]
  [[]]
  in_flight@host/stepped)
plant(nobody_hears_of_an_image_that_has_gone swap/regions.cpp
  [[if (image) image->report_to(gone_image_bytes_);]]
  [[]]
  model_memory)
plant(a_removed_region_keeps_its_image swap/regions.cpp
  [[image = gone->take_image();]]
  [[]]
  model_memory)
plant(a_closed_model_keeps_its_sums swap/regions.cpp
  [[sums = std::move(sums_);]]
  [[]]
  verify)
plant(a_closed_model_keeps_its_images swap/regions.cpp
  [[for (const RegionPtr& region : regions_) images.push_back(region->take_image());]]
  [[]]
  model_memory)
plant(a_closed_model_comes_in_again swap/regions.cpp
  [[state_ = State::closed;]]
  [[]]
  model_memory)
plant(a_swap_in_moves_in_no_time swap/loads.cpp
  [[report.moving_ns = driver_->now_ns() - start;]]
  [[]]
  schedules@host/stepped)
plant(what_is_copied_again_takes_no_time swap/loads.cpp
  [[report.moving_ns += driver_->now_ns() - start;]]
  [[]]
  schedules@host/stepped)
plant(a_save_of_what_changed_moves_in_no_time swap/saves.cpp
  [[report.moving_ns += driver_->now_ns() - start;]]
  [[]]
  verify)
plant(a_save_of_what_was_written_moves_in_no_time swap/saves.cpp
  [[report.moving_ns = driver_->now_ns() - start;]]
  [[]]
  verify)
