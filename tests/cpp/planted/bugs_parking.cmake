# swap/: images that are kept elsewhere for a while.
plant(an_image_goes_from_under_a_view swap/parking.cpp
  [[image_.use_count() == 1]]
  [[image_.use_count() >= 1]]
  parking)
plant(the_first_images_stay_away_after_a_refusal swap/parking.cpp
  [[regions[j]->put_image(std::move(images[j]));]]
  [[]]
  parking)
plant(a_parked_model_comes_in swap/parking.cpp
  [[if (!region->parked()) continue;]]
  [[continue;]]
  parking BY crash)
plant(a_parked_region_has_no_pages_to_be_warm swap/parking.cpp
  [[image_ != nullptr || parked_]]
  [[image_ != nullptr]]
  parking)
plant(a_model_with_warm_pages_is_parked swap/parking.cpp
  [[require_cold("images are parked while their model is out");]]
  [[require(State::out, "images are parked while their model is out");]]
  parking)
plant(an_image_that_has_grown_is_digested_as_it_was swap/parking.cpp
  [[in_pieces(region.saved_.runs(), piece_bytes_)]]
  [[pieces_of(region, region.saved_)]]
  parking)
plant(damage_is_digested_as_an_image_is_parked swap/parking.cpp
  [[throw damaged(region, piece, "");]]
  [[break;]]
  parking)
plant(memory_for_an_image_is_not_said_to_be_gone swap/parking.cpp
  [[image->report_to(gone_image_bytes_);]]
  [[]]
  parking)
plant(an_image_comes_back_too_short swap/parking.cpp
  [[images[i]->missing_bytes(regions[i]->bytes()) > 0]]
  [[false]]
  parking)
plant(what_came_back_is_parked_for_ever swap/parking.cpp
  [[regions[i]->parked_ = false;]]
  [[]]
  parking)
plant(an_image_is_adopted_without_a_word swap/swap.cpp
  [[++region.image_changes_;]]
  [[]]
  parking)
plant(an_image_is_resized_without_a_word swap/resize.cpp
  [[++region.image_changes_;]]
  [[]]
  parking)
plant(a_parked_region_is_resized swap/resize.cpp
  [[if (region.parked()) throw UsageError("a parked region cannot be resized: bring it back first");]]
  [[]]
  parking BY crash)
plant(what_is_saved_unseen_is_saved_without_a_word swap/saves.cpp
  [[++region->image_changes_;]]
  [[]]
  parking)
plant(a_piece_is_saved_without_a_word swap/saves.cpp
  [[++save.region->image_changes_;]]
  [[]]
  parking)
plant(an_image_that_changed_meanwhile_is_parked swap/parking.cpp
  [=[region.image_changes() != changes[i]]=]
  [[false]]
  parking)
