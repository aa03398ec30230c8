# swap/: pages that stay behind their addresses while their model is out, or come ahead of it.
plant(what_was_never_saved_stays swap/arrivals.cpp
  [[once_more ? as_left[i] * page_bytes_ : 0]]
  [[std::size_t{0}]]
  warm)
plant(zeros_that_came_ahead_are_believed swap/arrivals.cpp
  [[once_more ? 0 : from]]
  [[from]]
  warm)
plant(clean_pages_are_believed swap/arrivals.cpp
  [[region.tag_ == Tag::kv_cache || region.tag_ == Tag::workspace]]
  [[true]]
  warm)
plant(clean_pages_are_not_believed_where_nothing_is_verified swap/arrivals.cpp
  [[verify_ == Verify::off]]
  [[false]]
  warm)
plant(clean_pages_go_where_they_are_not_believed swap/arrivals.cpp
  [[takes_clean(region) ? until[i] * page_bytes_ : from]]
  [[until[i] * page_bytes_]]
  warm)
plant(clean_pages_that_a_region_grows_into_are_believed swap/resize.cpp
  [[takes_clean(region) ? clean : 0]]
  [[clean]]
  warm)
plant(what_comes_ahead_is_zeroed_at_the_start swap/arrivals.cpp
  [[run = {run.begin + from, run.end + from};]]
  [[]]
  warm)
plant(what_is_there_is_verified_ahead_of_use swap/arrivals.cpp
  [[arrive(until, pages, clean, stop, shares, true)]]
  [[arrive(until, pages, clean, stop, shares, !true)]]
  warm)
plant(a_piece_that_is_half_there_is_not_copied swap/loads.cpp
  [[piece.end <= region->pages_mapped() * page_bytes_]]
  [[piece.begin < mapped_counts()[i] * page_bytes_]]
  warm)
plant(what_stayed_is_not_verified swap/arrivals.cpp
  [[arrive(until, pages, clean, stop, shares, false)]]
  [[arrive(until, pages, clean, stop, shares, !false)]]
  warm)
plant(what_came_ahead_is_taken_for_verified swap/loads.cpp
  [[verify_ == Verify::off || is_ahead]]
  [[verify_ == Verify::off || (!is_shared && piece.begin >= among_first(as_left_)[i] * page_bytes_)]]
  warm)
plant(a_page_that_stayed_is_copied_again swap/loads.cpp
  [[region->pages_mapped()]]
  [[std::size_t{0}]]
  warm)
plant(a_workspace_stays swap/swap.cpp
  [[region->has_image() ? std::min(count, region->pages()) : 0]]
  [[std::min(count, region->pages())]]
  warm)
plant(a_region_changes_under_its_warm_pages swap/swap.cpp
  [[pages_mapped() > 0]]
  [[false]]
  warm)
plant(what_stayed_is_taken_for_zeros swap/departures.cpp
  [[as_left_ = pages_mapped();]]
  [[as_left_ = 0;]]
  warm)
plant(what_went_is_taken_for_left swap/departures.cpp
  [[as_left_ = std::min(as_left_, warm - count);]]
  [[]]
  warm)
plant(pages_that_went_do_not_come_back_after_a_refusal swap/departures.cpp
  [[mapping->extend(cut[i]);]]
  [[]]
  warm)
plant(a_refusal_leaves_a_model_torn swap/departures.cpp
  [[state_ = before;]]
  [[]]
  warm)
