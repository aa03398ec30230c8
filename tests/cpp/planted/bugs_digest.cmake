# digest/digest: each path, its copy, and what is left behind the last whole word.
plant(a_round_mixes_with_another_constant digest/mix.h
  [[(z & 0xffffffff) * m]]
  [[(z & 0xffffffff) * (m + 2)]]
  digest)
plant(a_round_turns_a_bit_less digest/mix.h
  [[(product << 32 | product >> 32)]]
  [[(product << 31 | product >> 33)]]
  digest)
plant(a_round_forgets_the_high_half digest/mix.h
  [[(z >> 32)]]
  [[(z >> 33)]]
  digest)
plant(words_have_the_key_of_the_word_before digest/digest.cpp
  [[(first_word + 1) * key_step]]
  [[first_word * key_step]]
  digest)
plant(the_position_of_a_word_is_forgotten digest/digest.cpp
  [[first_key + i * key_step]]
  [[first_key]]
  digest)
plant(a_copied_word_goes_one_further digest/digest.cpp
  [[std::memcpy(destination + word_bytes * i, &word, word_bytes);]]
  [[std::memcpy(destination + word_bytes * (i + 1), &word, word_bytes);]]
  digest)
plant(words_behind_the_last_block_are_lost digest/digest.cpp
  [[go_on(&run_portable, words, 1);]]
  [[]]
  digest)
plant(words_behind_the_last_block_are_copied_to_the_front digest/digest.cpp
  [[if (destination != nullptr) destination += done * word_bytes;]]
  [[]]
  digest)
plant(words_behind_the_last_block_are_counted_anew digest/digest.cpp
  [[first_word += done;]]
  [[]]
  digest)
plant(a_stream_of_vectors_begins_unaligned digest/digest.cpp
  [[(0 - address) % loops.vector_bytes / word_bytes]]
  [[address % loops.vector_bytes / word_bytes]]
  digest BY crash)
plant(a_large_copy_is_not_made digest/digest.cpp
  [[loop = loops.streaming;]]
  [[loop = loops.none;]]
  digest)
plant(avx2_steps_by_half_its_vectors digest/digest.cpp
  [[return run_loops(loops_avx2, destination, source, words, first_word);]]
  [[return run_loops({loops_avx2.none, loops_avx2.cached, loops_avx2.streaming, sizeof(__m128i)},
                     destination, source, words, first_word);]]
  digest BY crash)
plant(sse2_does_not_copy digest/digest.cpp
  [[return run_loops(loops_sse2, destination, source, words, first_word);]]
  [[return run_loops({loops_sse2.none, loops_sse2.none, loops_sse2.none, loops_sse2.vector_bytes},
                     destination, source, words, first_word);]]
  digest)
plant(whole_words_ignore_the_first_word digest/digest.cpp
  [[digest_paths().back().run(destination, source, words, first_word)]]
  [[digest_paths().back().run(destination, source, words, 0)]]
  digest)
plant(the_last_part_ignores_the_first_word digest/digest.cpp
  [[(0 - (first_word + words)) * key_step]]
  [[(0 - words) * key_step]]
  digest)
plant(the_length_of_the_last_part_is_lost digest/digest.cpp
  [[last | std::uint64_t{rest} << 56]]
  [[last]]
  digest)
plant(the_last_part_is_not_copied digest/digest.cpp
  [[if (destination != nullptr) std::memcpy(destination + words * word_bytes, &last, rest);]]
  [[]]
  digest)
plant(the_last_part_is_copied_as_a_word digest/digest.cpp
  [[std::memcpy(destination + words * word_bytes, &last, rest)]]
  [[std::memcpy(destination + words * word_bytes, &last, word_bytes)]]
  digest)
