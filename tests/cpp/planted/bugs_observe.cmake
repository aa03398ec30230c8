# driver/: what the observer counts, what the watcher sees end, and how a trace is written.
plant(bytes_in_are_not_counted driver/observe.cpp
  [[o.to_device_bytes_.fetch_add(operands.bytes, relaxed);]]
  [[]]
  observe)
plant(bytes_out_are_counted_as_bytes_in driver/observe.cpp
  [[o.to_host_bytes_.fetch_add(operands.bytes, relaxed);]]
  [[o.to_device_bytes_.fetch_add(operands.address != 0 ? operands.bytes : 0, relaxed);]]
  observe)
plant(a_page_released_is_still_counted driver/observe.cpp
  [[o.pages_.fetch_sub(1, relaxed);]]
  [[]]
  observe)
plant(an_unmap_is_counted_as_a_page driver/observe.cpp
  [[o.mapped_bytes_.fetch_sub(operands.bytes, relaxed);]]
  [[o.mapped_bytes_.fetch_sub(1, relaxed);]]
  observe)
plant(a_failure_is_not_counted driver/observe.cpp
  [[count.failures.fetch_add(1, relaxed);]]
  [[]]
  observe)
plant(work_that_is_not_ready_is_a_failure driver/observe.cpp
  [[status != Status::not_ready]]
  [[true]]
  observe@host/stepped)
plant(time_inside_is_not_counted driver/observe.cpp
  [[static_cast<std::uint64_t>(end_ns - begin_ns)]]
  [[std::uint64_t{0}]]
  observe)
plant(time_inside_is_counted_in_other_units driver/observe.cpp
  [[end_ns - begin_ns]]
  [[(end_ns - begin_ns) * 1000]]
  observe)
plant(a_failed_unregistration_takes_bytes_off driver/observe.cpp
  [[note_unregistered(made, std::move(registration));]]
  [[note_unregistered(true, std::move(registration));]]
  observe)
plant(a_trace_is_not_switched_off driver/observe.cpp
  [[tracing_ = false;]]
  [[]]
  trace_record)
plant(a_wait_for_one_stream_is_one_for_all driver/observe.cpp
  [[waits_for_all(call) ? nullptr : &operands.stream]]
  [[nullptr]]
  watch)
plant(a_stream_destroyed_keeps_its_track driver/observe.cpp
  [[track = watcher_.forget(look(false).stream);]]
  [[]]
  trace)
plant(a_stream_not_destroyed_loses_its_track driver/observe.cpp
  [[watcher_.remember(track);]]
  [[]]
  watch)
plant(work_is_enqueued_when_its_call_ends driver/observe.cpp
  [[watcher_.enqueued(call, operands.stream, begin_ns, operands.address, operands.bytes);]]
  [[watcher_.enqueued(call, operands.stream, end_ns, operands.address, operands.bytes);]]
  trace)

plant(work_begins_before_what_is_ahead_of_it_ends driver/watch.cpp
  [[std::max(work.event.enqueued_ns, track.end_ns)]]
  [[work.event.enqueued_ns]]
  watch)
plant(work_ends_when_it_begins driver/watch.cpp
  [[std::max(work.event.begin_ns, end_ns)]]
  [[work.event.begin_ns]]
  watch)
plant(work_ends_before_it_begins driver/watch.cpp
  [[trace_->ran(work.event);]]
  [[std::swap(work.event.begin_ns, work.event.end_ns);
    trace_->ran(work.event);]]
  trace)
plant(work_seen_to_end_is_called_unfinished driver/watch.cpp
  [[finish(it->second, now, status, Kind::ran);]]
  [[finish(it->second, now, status, Kind::unfinished);]]
  trace@host/stepped)
plant(work_waited_for_is_called_unfinished driver/watch.cpp
  [[finish(track, now, Status::success, Kind::ran);]]
  [[finish(track, now, Status::success, Kind::unfinished);]]
  watch watch@host/stepped)
plant(unfinished_work_is_not_shown driver/watch.cpp
  [[while (!track.work.empty()) finish(track, now, Status::success, Kind::unfinished);]]
  [[track.work.clear();]]
  trace)
plant(a_trace_has_the_tracks_of_the_last driver/watch.cpp
  [[tracks_.clear();]]
  [[]]
  watch)
plant(an_event_is_used_once driver/watch.cpp
  [[spare_.push_back(work.done);]]
  [[]]
  watch)
plant(work_that_ended_is_in_flight_for_ever driver/watch.cpp
  [[--in_flight_;]]
  [[]]
  watch)
plant(any_number_of_works_is_watched driver/watch.cpp
  [[in_flight_ < in_flight_max]]
  [[true]]
  watch)
plant(work_dropped_is_not_counted driver/watch.cpp
  [[trace_->drop();]]
  [[]]
  watch)

plant(a_call_is_written_without_its_address driver/trace.cpp
  [[event.address != 0]]
  [[false]]
  trace_written)
plant(a_call_is_written_without_its_bytes driver/trace.cpp
  [[event.bytes != 0]]
  [[false]]
  trace_written)
plant(a_failure_is_written_as_success driver/trace.cpp
  [[event.status != 0]]
  [[false]]
  trace_written)
plant(nothing_was_ever_queued driver/trace.cpp
  [[event.begin_ns - event.enqueued_ns]]
  [[event.begin_ns - event.begin_ns]]
  trace_written)
plant(a_slice_ends_before_it_begins driver/trace.cpp
  [[event.end_ns - event.begin_ns]]
  [[event.begin_ns - event.end_ns]]
  trace_written)
plant(times_are_written_to_the_microsecond driver/trace.cpp
  [[int(ns % 1000)]]
  [[0]]
  trace_record)
plant(a_call_is_written_as_work_of_a_stream driver/trace.cpp
  [[event.kind == Kind::call ? "driver" : "stream"]]
  [["stream"]]
  trace_written)
plant(the_last_line_ends_in_a_comma driver/trace.cpp
  [[out.resize(out.size() - 2);]]
  [[]]
  trace_written)
plant(a_piece_is_handed_over_again driver/trace.cpp
  [[out.clear();]]
  [[]]
  trace_written)
plant(a_control_character_is_written_as_it_is driver/trace.cpp
  [[static_cast<unsigned char>(c) < 0x20]]
  [[c == '\n']]
  trace_written)
plant(what_is_not_finite_is_written_as_it_is driver/trace.cpp
  [[std::isfinite(*number)]]
  [[true]]
  trace_written)
plant(what_encloses_comes_later driver/trace.cpp
  [[std::tuple(a.track, a.begin_ns, -a.end_ns) < std::tuple(b.track, b.begin_ns, -b.end_ns)]]
  [[std::tuple(a.track, a.begin_ns, a.end_ns) < std::tuple(b.track, b.begin_ns, b.end_ns)]]
  trace_written)
plant(a_trace_has_room_for_one_more driver/trace.cpp
  [[events_.size() < capacity_]]
  [[events_.size() <= capacity_]]
  trace_record)
plant(an_event_is_kept_after_the_close driver/trace.cpp
  [[if (closed_) return;]]
  [[]]
  trace_record)
plant(a_drop_after_the_close_is_counted driver/trace.cpp
  [[if (!closed_) ++dropped_;]]
  [[++dropped_;]]
  trace_record)
