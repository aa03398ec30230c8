# memory/: pages, mappings, tensors over reservations and slabs of pages.
plant(a_budget_holds_a_page_more memory/page_pool.cpp
  [[budget_bytes / page_bytes]]
  [[budget_bytes / page_bytes + 1]]
  page_pool)
plant(a_page_more_than_is_free_is_granted memory/page_pool.cpp
  [[count > available]]
  [[count > available + 1]]
  page_pool)
plant(a_page_given_back_twice_is_taken memory/page_pool.cpp
  [[distinct.size() != pages.size()]]
  [[false]]
  page_pool)
plant(the_page_of_another_is_taken memory/page_pool.cpp
  [[!all_owned]]
  [[false]]
  page_pool)
plant(a_page_is_granted_twice memory/page_pool.cpp
  [[from.pop_back();]]
  [[]]
  page_pool)
plant(a_page_that_could_not_be_created_is_counted memory/page_pool.cpp
  [[if (failed) std::rethrow_exception(failed);]]
  [[if (failed) { created_.emplace_back(); std::rethrow_exception(failed); }]]
  page_pool)
plant(two_threads_create_the_last_page memory/page_pool.cpp
  [[created_.size() + creating_ < count]]
  [[created_.size() < count]]
  page_pool)
plant(two_threads_create_the_page_that_both_need memory/page_pool.cpp
  [[ready + scrubbing_ + creating_ < count]]
  [[ready + scrubbing_ < count]]
  page_pool)
plant(who_waits_for_a_page_being_created_is_not_woken memory/page_pool.cpp
  [[--creating_;
  changed_.notify_all();]]
  [[--creating_;]]
  page_pool BY time)
plant(a_page_given_back_has_an_owner memory/page_pool.cpp
  [[slot.state = slot.page->in_doubt() ? State::withheld : State::free;]]
  [[]]
  page_pool)
plant(a_page_given_back_is_called_clean memory/page_pool.cpp
  [[clean ? clean_ : dirty_]]
  [[clean_]]
  page_pool scrub)
plant(pages_of_a_failed_scrub_are_called_clean memory/page_pool.cpp
  [[put_free(id, clean);]]
  [[put_free(id, true);]]
  scrub)
plant(a_page_is_never_released memory/page.cpp
  [[handle_ != 0]]
  [[false]]
  mapping)
plant(a_page_is_released_twice memory/page.cpp
  [[driver_->page_release(handle_)]]
  [[(static_cast<void>(driver_->page_release(handle_)), driver_->page_release(handle_))]]
  mapping)

plant(a_page_in_doubt_is_granted memory/page_pool.cpp
  [[slot.page->in_doubt()]]
  [[false]]
  page_pool in_flight@host/stepped)
plant(a_pool_has_more_pages_than_numbers memory/page_pool.cpp
  [[slots_ > pages_max]]
  [[false]]
  page_pool)
plant(a_page_being_scrubbed_is_given_back memory/page_pool.cpp
  [[for (const PageId id : pages) created_[id].state = State::owned_scrubbing;]]
  [[]]
  scrub)
plant(who_waits_for_a_scrub_is_not_woken memory/page_pool.cpp
  [[scrubbing_ -= pages.size();
  changed_.notify_all();]]
  [[scrubbing_ -= pages.size();]]
  scrub BY time)
plant(who_waits_for_what_is_withheld_is_not_woken memory/page_pool.cpp
  [[for (const PageId id : pages) {
    scrubbing_ -= created_[id].state == State::scrubbing;
    created_[id].state = State::withheld;
  }
  changed_.notify_all();]]
  [[for (const PageId id : pages) {
    scrubbing_ -= created_[id].state == State::scrubbing;
    created_[id].state = State::withheld;
  }]]
  scrub BY time)
plant(a_failed_map_leaves_pages_mapped memory/mapping.cpp
  [[driver_->unmap(start, bytes) == Status::success]]
  [[true]]
  mapping)
plant(a_failed_map_forgets_what_is_mapped memory/mapping.cpp
  [[mapped_bytes_ += bytes;]]
  [[if (status == Status::success) mapped_bytes_ += bytes;]]
  mapping)
plant(an_unmap_is_a_page_short memory/mapping.cpp
  [[GPUPOOL_CALL(driver_, unmap, reservation_->address(), mapped_bytes_);]]
  [[GPUPOOL_CALL(driver_, unmap, reservation_->address(), mapped_bytes_ - pages_[0]->bytes());]]
  mapping)
plant(access_is_a_page_short memory/mapping.cpp
  [[driver_->set_access(start, bytes)]]
  [[driver_->set_access(start, bytes - page_bytes)]]
  mapping)
plant(an_unmapped_range_is_called_mapped memory/mapping.cpp
  [[mapped_bytes_ = 0;
  accessible_ = false;]]
  [[mapped_bytes_ = 0;]]
  mapping)
plant(the_end_of_a_mapping_leaves_it_mapped memory/mapping.cpp
  [[driver_->unmap(reservation_->address(), mapped_bytes_) != Status::success]]
  [[false]]
  mapping)
plant(pages_that_stay_mapped_are_granted memory/mapping.cpp
  [[abandon();]]
  [[reservation_->keep();]]
  mapping)
plant(pages_left_in_flight_are_not_in_doubt memory/mapping.cpp
  [[for (std::size_t i = 0; i < mapped; ++i) pages_[i]->put_in_doubt();]]
  [[]]
  in_flight@host/stepped)
plant(addresses_still_mapped_are_given_back memory/mapping.cpp
  [[!kept_]]
  [[true]]
  mapping in_flight@host/stepped)
plant(pages_larger_than_the_reservation_are_taken memory/mapping.cpp
  [[all * pages_[0]->bytes() > reservation_->bytes()]]
  [[(all - 1) * pages_[0]->bytes() > reservation_->bytes()]]
  mapping)
plant(a_failed_growth_keeps_its_pages memory/mapping.cpp
  [[pages_.resize(mapped_bytes_ / pages_[0]->bytes());]]
  [[]]
  mapping)
plant(a_shrunk_mapping_unmaps_what_is_gone memory/mapping.cpp
  [[mapped_bytes_ = kept_bytes;]]
  [[]]
  mapping)
plant(addresses_are_never_freed memory/mapping.cpp
  [[static_cast<void>(driver_->address_free(address_, bytes_));]]
  [[]]
  mapping)
plant(addresses_are_freed_before_their_mapping memory/mapping.cpp
  [[std::move(reservation)]]
  [[ReservationPtr(ReservationPtr(), reservation.get())]]
  mapping)

plant(a_tensor_does_not_hold_its_addresses memory/dlpack.cpp
  [[std::move(reservation)]]
  [[ReservationPtr(ReservationPtr(), reservation.get())]]
  dlpack)
plant(a_tensor_is_an_element_longer memory/dlpack.cpp
  [[static_cast<std::int64_t>(bytes)]]
  [[static_cast<std::int64_t>(bytes) + 1]]
  dlpack)

plant(pages_of_a_slab_go_before_they_are_unmapped transfer/page_slabs.cpp
  [[at->second.mapping->unmap();]]
  [[pool_->give_back(owner_, at->second.pages); at->second.mapping->unmap();]]
  page_slabs)
plant(a_slab_that_could_not_go_back_is_lost transfer/page_slabs.cpp
  [[++next;]]
  [[next = idle_.erase(next);]]
  page_slabs)
plant(a_slab_shows_what_a_model_left transfer/page_slabs.cpp
  [[!run.zeros]]
  [[false]]
  page_slabs)
plant(pages_of_a_failed_slab_go_before_they_are_unmapped transfer/page_slabs.cpp
  [[if (mapping) mapping->unmap();]]
  [[pool_->give_back(owner_, pages); if (mapping) mapping->unmap();]]
  page_slabs)
plant(a_slab_that_stayed_counts_as_zeros transfer/page_slabs.cpp
  [[at->second.zeros = false;]]
  [[]]
  page_slabs)

plant(a_freed_block_is_not_joined_with_the_one_before memory/arena.cpp
  [[block != blocks_.begin() && is_free(std::prev(block)->second)]]
  [[false]]
  arena)
plant(a_shorter_arena_cuts_blocks_off memory/arena.cpp
  [[!free_tail || tail->first > base_ + usable]]
  [[!free_tail]]
  arena)
plant(an_arena_block_is_not_rounded_up memory/arena.cpp
  [[(bytes + alignment_ - 1) / alignment_ * alignment_]]
  [[std::max(bytes / alignment_ * alignment_, alignment_)]]
  arena)
plant(a_slot_is_given_away_with_blocks_in_use memory/arena_slots.cpp
  [[open || !holding.arena || holding.arena->live_blocks() > 0]]
  [[open || !holding.arena]]
  arena_slots)
