# Copies in batches, from the drivers up to the copy streams.

plant(a_batch_is_checked_but_for_its_last_copy driver/host_work.h
  [[i < count]]
  [[i + 1 < count]]
  host_batch)
plant(a_copy_of_no_bytes_is_taken driver/host_work.h
  [[sizes[i] == 0]]
  [[false]]
  host_batch)
plant(a_batch_overlaps driver/host_batch.h
  [[right.first - left.first < left.second]]
  [[false]]
  host_batch)
plant(a_batch_that_touches_overlaps driver/host_batch.h
  [[right.first - left.first < left.second]]
  [[right.first - left.first <= left.second]]
  host_batch)
plant(a_batch_to_the_host_goes_to_the_device driver/host.cpp
  [[copy_bytes(memory, pointer(device), n);]]
  [[copy_bytes(pointer(device), memory, n);]]
  conformance)
plant(a_batch_is_copied_in_order driver/host_stepped.cpp
  [[std::swap(order[i - 1], order[random_.below(i)]);]]
  [[]]
  host_batch)
plant(a_batch_goes_to_the_legacy_stream driver/cuda.cpp
  [[return cu_.copy_batch(to, of, bytes, count, &attributes, &from, 1, native(stream));]]
  [[return cu_.copy_batch(to, of, bytes, count, &attributes, &from, 1, nullptr);]]
  transfer_batch@cuda)
plant(a_batch_goes_the_other_way driver/cuda.cpp
  [[return cu_.copy_batch(to, of, bytes, count, &attributes, &from, 1, native(stream));]]
  [[return cu_.copy_batch(of, to, bytes, count, &attributes, &from, 1, native(stream));]]
  transfer_batch@cuda)
plant(a_batch_lacks_its_last_copy driver/cuda.cpp
  [[return cu_.copy_batch(to, of, bytes, count, &attributes, &from, 1, native(stream));]]
  [[return count == 1 ? 0 : cu_.copy_batch(to, of, bytes, count - 1, &attributes, &from, 1,
                                           native(stream));]]
  transfer_batch@cuda)
plant(a_batch_has_no_access_order driver/cuda.cpp
  [[attributes.source_access_order = source_access_in_stream_order;]]
  [[]]
  transfer_batch@cuda)
plant(a_batch_has_flags_that_do_not_exist driver/cuda.cpp
  [[attributes.source_access_order = source_access_in_stream_order;]]
  [[attributes.source_access_order = source_access_in_stream_order; attributes.flags = 2;]]
  transfer_batch@cuda)
plant(a_batch_of_cuda_12_8_is_forgotten driver/cuda.cpp
  [[return cu_.copy_batch_12080(to, of, bytes, count, &attributes, &from, 1, &failed,
                                    native(stream));]]
  [[return failed == 0 ? 0 : 1;]]
  cuda_older@cuda)
plant(a_batch_counts_its_first_copy_alone driver/operands.h
  [[std::accumulate(sizes, sizes + count, std::uint64_t{0})]]
  [[std::uint64_t{sizes[0]}]]
  transfer_batch observe)
plant(a_call_has_any_number_of_copies transfer/transfer.cpp
  [[sizes_.size() == CopyStream::batch_spans_max]]
  [[false]]
  transfer_batch)
plant(a_call_has_any_number_of_bytes transfer/transfer.cpp
  [[n > chunk_bytes_ - bytes_]]
  [[false]]
  transfer_batch)
plant(the_last_call_of_a_batch_is_not_made transfer/transfer.cpp
  [[if (!sizes_.empty()) flush(call);]]
  [[]]
  transfer_batch)
plant(a_call_lacks_its_last_copy transfer/transfer.cpp
  [[call(device_.data(), host_.data(), sizes_.data(), sizes_.size());]]
  [[call(device_.data(), host_.data(), sizes_.data(), sizes_.size() - 1);]]
  transfer_batch)
plant(a_chunk_of_a_span_has_the_size_of_all_of_it transfer/transfer.cpp
  [[sizes_.push_back(n);]]
  [[sizes_.push_back(span.bytes);]]
  transfer_batch)
plant(every_chunk_of_a_span_has_its_begin_on_the_host transfer/transfer.cpp
  [[host_.push_back(span.host + at);]]
  [[host_.push_back(span.host);]]
  transfer_batch)
