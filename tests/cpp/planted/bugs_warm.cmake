# swap/: pages that stay behind their addresses while their model is out, or come ahead of it.
plant(what_was_never_saved_stays swap/arrivals.cpp
  [[within({0, as_left[i] * page_bytes_}, unsaved[i])]]
  [[within({0, 0}, unsaved[i])]]
  warm)
plant(what_comes_ahead_is_zeroed_at_the_start swap/arrivals.cpp
  [[run = {run.begin + from, run.end + from};]]
  [[]]
  warm)
plant(what_stayed_is_verified_for_ever swap/arrivals.cpp
  [[as_left_ = 0;]]
  [[]]
  warm)
plant(pages_beyond_those_with_an_image_come_ahead swap/arrivals.cpp
  [[std::accumulate(until.begin(), until.end(), std::size_t{0}) < count]]
  [[false]]
  warm)
plant(a_piece_that_is_half_there_is_not_copied swap/loads.cpp
  [[piece.end <= region->pages_mapped() * page_bytes_]]
  [[piece.begin < mapped_counts()[i] * page_bytes_]]
  warm)
plant(what_stayed_is_not_verified swap/loads.cpp
  [[piece.begin >= as_left[i] * page_bytes_]]
  [[true]]
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
plant(what_stayed_is_taken_for_verified swap/departures.cpp
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
