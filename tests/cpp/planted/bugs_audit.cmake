# swap/: what a swap-out looks at although nobody said that it was written.
plant(the_audit_begins_anew_each_time swap/departures.cpp
  [[// Not before: what a swap-out that failed has found the next one finds too, and reports.
  audit_from_ = audit_next;]]
  [[]]
  audit)
plant(what_a_failed_swap_out_found_is_passed_over swap/departures.cpp
  [[audit_next = save(unsaved(), report, whole);]]
  [[audit_next = audit_from_ = save(unsaved(), report, whole);]]
  audit)
plant(a_swap_out_audits_everything swap/audits.cpp
  [[++audit.pieces == most]]
  [[++audit.pieces == 0]]
  audit)
plant(a_sample_audits_as_much_as_all swap/audits.cpp
  [[pieces_max / sampled_one_in]]
  [[pieces_max]]
  audit)
plant(a_piece_is_audited_twice_at_a_time swap/audits.cpp
  [[turn == regions_.size() ? from.byte : region.bytes()]]
  [[region.bytes()]]
  audit)
plant(the_start_of_a_region_is_never_audited_again swap/audits.cpp
  [[turn <= regions_.size()]]
  [[turn < regions_.size()]]
  audit)
plant(the_audit_goes_on_in_a_region_that_has_gone swap/audits.cpp
  [[(from.region + turn) % regions_.size()]]
  [[std::min(from.region + turn, regions_.size() - 1)]]
  audit)
plant(what_is_marked_is_audited swap/audits.cpp
  [[!within(piece, written).empty() || !region.digests_.of(piece)]]
  [[!region.digests_.of(piece)]]
  audit)
plant(what_is_sealed_is_audited swap/audits.cpp
  [[!region.image_ || region.sealed_]]
  [[!region.image_]]
  audit)
plant(what_the_audit_finds_is_not_reported swap/audits.cpp
  [[*sum++ != load.region->digests_.of(piece)]]
  [[false]]
  audit)
plant(an_audit_has_the_sums_of_the_one_before swap/saves.cpp
  [[sum += in_pieces({&load.run, 1}, piece_bytes_).size();]]
  [[++sum;]]
  audit)
plant(what_stayed_is_trusted_after_all swap/departures.cpp
  [[distrusted_ || report.unmarked_bytes > 0]]
  [[distrusted_]]
  audit)
plant(what_stayed_is_verified_by_the_sample_alone swap/loads.cpp
  [[(distrusted_ && loads[i].is_there)]]
  [[false]]
  audit)
plant(what_stayed_is_never_trusted_again swap/arrivals.cpp
  [[distrusted_ = false;]]
  [[]]
  audit)
plant(what_is_marked_in_part_is_not_looked_at_again swap/saves.cpp
  [[if (marked != std::vector<Run>{piece}) save.in_part.push_back(piece);]]
  [[]]
  audit)
plant(what_strays_beside_a_mark_is_not_reported swap/saves.cpp
  [[strayed_bytes_ += piece.bytes();]]
  [[]]
  audit)
plant(a_copy_that_went_wrong_is_taken_for_a_write swap/saves.cpp
  [[is[i] != digest(save.region->image_->data() + marked[i].begin, marked[i].bytes())]]
  [[false]]
  audit)
