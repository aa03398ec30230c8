# memory/slab*: generations, free lists, slabs coming and going, and what passes between threads.
plant(a_stale_handle_is_live memory/slab_inline.h
  [[slab.generations[name.block].load(std::memory_order_relaxed) == name.generation]]
  [[slab.generations[name.block].load(std::memory_order_relaxed) >= name.generation]]
  slab BY crash)
plant(a_handle_of_a_free_block_is_live memory/slab_inline.h
  [[(name.generation & 1) != 0]]
  [[true]]
  slab)
plant(a_freed_block_keeps_its_generation memory/slab_inline.h
  [[slab.generations[name.block].store(name.generation + 1, std::memory_order_relaxed);]]
  [[]]
  slab BY crash)
plant(the_free_list_is_off_by_one memory/slab_inline.h
  [[slab.stack[free - 1] + 1]]
  [[slab.stack[free > 1 ? free - 2 : 0] + 1]]
  slab)
plant(a_full_slab_is_taken_for_one_with_room memory/slab_inline.h
  [[free - 1 < usable - 2 || thread.current[slab.shape] == &slab]]
  [[true]]
  slab)
plant(a_block_is_a_byte_off memory/slab_inline.h
  [[name.block * slab.block_bytes]]
  [[name.block * (slab.block_bytes - 8)]]
  slab)
plant(a_block_is_used_once_too_often memory/slab_inline.h
  [[name.generation + 1 != retired_]]
  [[true]]
  slab)
plant(a_block_is_not_retired memory/slab.cpp
  [[name.generation + 1 == retired_]]
  [[false]]
  slab)
plant(a_retired_block_is_counted memory/slab.cpp
  [[slab.usable.load(std::memory_order_relaxed) - 1]]
  [[slab.usable.load(std::memory_order_relaxed)]]
  slab)
plant(a_slab_has_the_wrong_shape memory/slab.cpp
  [[slab.block_bytes = limits_.block_bytes[slab.shape];]]
  [[slab.block_bytes = limits_.block_bytes[0];]]
  slab)
plant(the_smallest_shape_is_not_found memory/slab.cpp
  [[block_bytes(shape) < block_bytes(best)]]
  [[false]]
  slab)
plant(the_live_count_is_off_by_one memory/slab.cpp
  [[usable > free ? usable - free : 0]]
  [[usable > free + 1 ? usable - free - 1 : 0]]
  slab)
plant(a_free_is_not_checked_again_once_the_slab_is_taken memory/slab.cpp
  [[static_cast<void>(named(name));  // and again: its owner may just have freed it
  put_or_retire(slab, name);]]
  [[put_or_retire(slab, name);]]
  slab_threads)
plant(generations_begin_again_in_a_new_slab memory/slab_shared.cpp
  [[slab.stack == nullptr]]
  [[true]]
  slab)
plant(a_slab_more_than_the_limit_is_made memory/slab_shared.cpp
  [[held_ == limits_.slabs_max]]
  [[held_ == limits_.slabs_max + 1]]
  slab)
plant(a_trim_returns_a_slab_in_use memory/slab_shared.cpp
  [[if (!slab.held || count(slab.free) != count(slab.usable)) continue;
    try {
      disown(slab);
      if (count(slab.free) == count(slab.usable)) return_slab(slab);
    } catch (...) {
      failure = std::current_exception();
    }]]
  [[if (!slab.held) continue;
    try {
      disown(slab);
      return_slab(slab);
    } catch (...) {
      failure = std::current_exception();
    }]]
  slab BY crash)
plant(an_empty_slab_is_kept_for_ever memory/slab_shared.cpp
  [[list.spare == nullptr && count(slab.usable) > 0]]
  [[count(slab.usable) > 0]]
  slab)
plant(a_slab_that_could_not_be_returned_is_forgotten memory/slab_shared.cpp
  [[++return_failures_;
    share(slab);]]
  [[++return_failures_;]]
  slab_faults)
plant(a_slab_is_owned_by_whoever_used_it_last memory/slab_shared.cpp
  [[slab.last_user == thread ? std::min(slab.streak + 1, streak_to_own) : 0]]
  [[streak_to_own]]
  slab_owners)
plant(a_slab_is_taken_without_waiting memory/slab_threads.cpp
  [[owner->working.load(std::memory_order_acquire) == &slab]]
  [[false]]
  slab_threads BY crash)
plant(a_slab_is_taken_without_a_barrier memory/slab_threads.cpp
  [[syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) != 0]]
  [[false]]
  slab_barrier)
plant(a_slab_is_taken_that_its_owner_still_has memory/slab_threads.cpp
  [[slab.owner.store(nullptr, std::memory_order_relaxed);
  slab_pause();]]
  [[]]
  slab_barrier)

plant(many_blocks_are_some memory/slab_many.cpp
  [[while (done > 0) free(handles[--done]);]]
  [[]]
  slab_many)
plant(a_block_is_freed_twice_among_many memory/slab_many.cpp
  [[twice != sorted.end()]]
  [[false]]
  slab_many)
plant(a_stale_handle_among_many_is_met_late memory/slab_many.cpp
  [[for (const BlockHandle handle : handles) static_cast<void>(address_of(handle));
  for (const BlockHandle handle : handles) free(handle);]]
  [[for (const BlockHandle handle : handles) free(handle);]]
  slab_many)
plant(a_slab_lost_is_said_to_be_gone image/supplied_slabs.cpp
  [[memory->let_go() ? 1 : 0]]
  [[memory->let_go() ? 1 : 1]]
  supplied_slabs)
plant(a_slab_that_came_back_is_not_kept image/supplied_slabs.cpp
  [[idle_.insert(in_use_.extract(at));]]
  [[in_use_.erase(at);]]
  supplied_slabs)
plant(a_slab_in_use_is_dropped image/supplied_slabs.cpp
  [[dropped.swap(idle_);]]
  [[dropped.swap(idle_); dropped.merge(in_use_);]]
  supplied_slabs)

plant(blocks_in_use_are_not_waited_for memory/slab.cpp
  [[blocks_live(slab) > 0]]
  [[false]]
  slab in_flight@host/stepped)
plant(slabs_in_use_go_without_a_wait memory/slab.cpp
  [[if (!*ended) {
        source_->abandon(run);
        continue;
      }]]
  [[]]
  in_flight@host/stepped)
plant(every_slab_is_waited_for memory/slab.cpp
  [[if (!ended) ended = source_->ended();]]
  [[ended = source_->ended();]]
  slab)
plant(pages_of_a_slab_in_use_are_unmapped transfer/page_slabs.cpp
  [[at->second.mapping->abandon();]]
  [[]]
  in_flight@host/stepped)
plant(pages_of_a_slab_that_stays_mapped_are_not_withheld transfer/page_slabs.cpp
  [[if (run.mapping) run.mapping->abandon();]]
  [[]]
  in_flight@host/stepped)
plant(a_pinned_slab_in_use_is_unpinned image/host_slabs.cpp
  [[at->second->abandon();]]
  [[]]
  in_flight@host/stepped)
plant(a_supplied_slab_in_use_is_unpinned image/supplied_slabs.cpp
  [[at->second->abandon();]]
  [[]]
  in_flight@host/stepped)
plant(a_slab_that_stays_is_not_lost image/supplied_slabs.cpp
  [[++lost_;]]
  [[]]
  in_flight@host/stepped)
