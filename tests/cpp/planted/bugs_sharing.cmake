# What several models have because it has the same bytes.
plant(a_shared_page_goes_with_who_leaves_first memory/page_pool.cpp
  [[if (slot.others.empty()) {
    put_free(id, false);
    return;
  }]]
  [[put_free(id, false);
    return;]]
  page_pool)
plant(a_shared_page_is_kept_by_who_had_it_first memory/page_pool.cpp
  [[slot.owner = slot.others.back();]]
  [[]]
  page_pool)
plant(a_page_of_nobody_is_shared memory/page_pool.cpp
  [[!is_owned || holds(created_[id], owner)]]
  [[holds(created_[id], owner)]]
  page_pool)
plant(a_page_is_shared_twice memory/page_pool.cpp
  [[!seen.insert(id).second]]
  [[false]]
  page_pool)
plant(a_page_that_others_have_is_scrubbed memory/page_pool.cpp
  [[return !created_[id].others.empty();]]
  [[return false;]]
  page_pool)
plant(read_only_memory_is_written_to driver/host_address_space.cpp
  [[access == Access::write]]
  [[true]]
  read_only)
plant(what_is_read_only_is_only_called_so memory/mapping.cpp
  [[read_only_bytes_ == mapped_bytes_]]
  [[true]]
  sharing)
plant(what_comes_behind_read_only_pages_is_not memory/mapping.cpp
  [[read_only_bytes_ = std::min(read_only_bytes_, kept_bytes);]]
  [[]]
  sharing)
plant(what_is_mapped_anew_is_taken_for_read_only memory/mapping.cpp
  [[read_only_bytes_ = 0;]]
  [[]]
  sharing)
plant(what_stays_after_a_refusal_can_be_written_to swap/departures.cpp
  [[make_read_only();]]
  [[]]
  sharing)
plant(a_sealed_model_can_be_written_to_as_it_is swap/arrivals.cpp
  [[make_read_only();]]
  [[]]
  sharing)
plant(a_sealed_region_is_changed swap/sharing.cpp
  [[if (region.sealed_) throw UsageError("the region is sealed: its bytes cannot be changed");]]
  [[]]
  sharing)
plant(what_is_not_saved_is_sealed swap/sharing.cpp
  [[region.saved_.bytes() < region.bytes()]]
  [[false]]
  sharing)
plant(a_page_that_is_the_models_in_part_is_shared swap/sharing.cpp
  [[(at + 1) * page_bytes_ <= regions_[i]->bytes()]]
  [[at < regions_[i]->pages()]]
  sharing)
plant(pages_that_are_not_sealed_are_shared swap/sharing.cpp
  [[i < regions_.size() && regions_[i]->sealed_]]
  [[i < regions_.size()]]
  sharing)
plant(a_shared_page_comes_with_pages_that_are_not_its_own swap/sharing.cpp
  [[at < until[i] ]]
  [[true]]
  sharing BY crash)
plant(a_shared_page_is_taken_for_clean swap/sharing.cpp
  [[clean > pages.size()]]
  [[false]]
  sharing)
plant(a_shared_page_is_not_verified swap/loads.cpp
  [[join(loads, *region, piece, is_there, most);]]
  [[if (!is_shared) join(loads, *region, piece, is_there, most);]]
  sharing)
plant(a_shared_page_is_copied_over swap/loads.cpp
  [[shares[i][piece.begin / page_bytes_] != nullptr]]
  [[false]]
  sharing)
plant(an_image_of_other_bytes_is_taken swap/sharing.cpp
  [[std::memcmp(image->data(), old->data(), region.bytes()) != 0]]
  [[false]]
  sharing)
plant(an_image_is_replaced_under_who_looks_at_it swap/sharing.cpp
  [[image.use_count() > 2]]
  [[false]]
  sharing)
plant(shared_memory_is_counted_as_the_models_own swap/sharing.cpp
  [[is_shared ? gone_shared_bytes_ : gone_image_bytes_]]
  [[gone_image_bytes_]]
  sharing)
plant(memory_that_becomes_shared_is_counted_as_gone swap/sharing.cpp
  [[if (is_shared) old->report_to(nullptr);]]
  [[]]
  sharing)
plant(an_extent_begins_where_its_file_does image/host_memory.cpp
  [[map_file(data_ + bytes_, bytes, PROT_READ | PROT_WRITE, extent.fd, extent.offset)]]
  [[map_file(data_ + bytes_, bytes, PROT_READ | PROT_WRITE, extent.fd)]]
  sharing)
plant(an_extent_reaches_beyond_its_file image/host_memory.cpp
  [[extent.offset <= size - extent.bytes]]
  [[true]]
  sharing)
plant(a_given_page_is_taken_for_another swap/placement.cpp
  [[given[region][i] != nullptr]]
  [[false]]
  sharing BY crash)
plant(an_image_is_cut_within_a_piece swap/sharing.cpp
  [[extents[i].bytes % piece_bytes_ != 0]]
  [[false]]
  sharing)
plant(what_is_read_only_is_zeroed swap/arrivals.cpp
  [[!is_ahead && !region.sealed_]]
  [[!is_ahead]]
  sharing)
