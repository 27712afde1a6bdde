"""The situations that Ollama tests its scheduler in, and the tests here that cover them.

Not here, because there is nothing of the kind: vision models and their least context; models by digest without a path
(the file is the identity); a launch flag for context shift; a batch that grows with the context; automatic switching
off of mmap; memory that is shared by GPU and host; a context that is lowered after a failed load (``"auto"`` is
computed from an exact estimate before the first); memory that runs out while a model works (all is taken at load).
"""

from __future__ import annotations

from pathlib import Path

import pytest

SITUATIONS = {
    "init": "test_scheduler::test_devices_that_cannot_be_used_are_refused_at_the_start",
    "load": "test_scheduler::test_what_a_running_model_tells",
    "load stores the effective context length": "test_options::test_num_ctx",
    "load stores the explicit context length": "test_options::test_num_ctx",
    "same model, same request": "test_scheduler::test_a_second_request_uses_the_same_runner",
    "simple reload of the same model": "test_scheduler_reload::test_other_options_reload_only_where_they_must",
    "several loaded models": "test_scheduler::test_three_models_by_default",
    "get a runner, queue full": "test_scheduler::test_the_queue_is_bounded",
    "expire a runner": "test_unloading::test_an_idle_model_is_unloaded_after_its_time",
    "expired too early": "test_unloading::test_a_busy_model_does_not_expire",
    "use a loaded runner": "test_scheduler::test_concurrent_requests_share_one_load",
    "update free space":
        "test_reservations::test_what_loaded_models_were_promised_is_not_free_whatever_the_system_says",
    "find a runner to unload": "test_eviction::test_the_choice",
    "needs reload": "test_options::test_needs_reload",
    "needs reload, context clamped": "test_scheduler_reload::test_a_context_beyond_the_trained_length_does_not_reload",
    "needs reload, batch follows the context": "test_options::test_needs_reload",
    "needs reload, mmap left open": "test_scheduler_reload::test_other_options_reload_only_where_they_must",
    "unload all runners": "test_scheduler::test_close_ends_loaded_and_loading_models_and_those_who_wait",
    "unload": "test_unloading::test_unload_returns_when_an_idle_model_is_gone",
    "already cancelled": "test_loading::test_a_request_that_left_before_its_load_began_is_skipped",
    "evicts when GPU memory is short": "test_loading_makes_room::test_the_smallest_set_that_makes_room_goes",
    "a fixed part needs no eviction":
        "test_loading_makes_room::test_a_fixed_part_on_the_gpu_does_not_need_the_room_of_the_whole",
    "fits alongside": "test_loading::test_loads_on_different_devices_go_side_by_side",
    "memory counts all sequences": "test_plan::test_more_sequences_and_larger_values_leave_less_context",
    "choice of the GPU": "test_loading_gpus::test_main_gpu_has_the_model_where_it_fits",
    "a crash for memory evicts and retries":
        "test_loading_crashes::test_a_crash_for_want_of_memory_is_tried_again_once_after_others_have_gone",
    "the retry keeps an explicit context":
        "test_loading_crashes::test_a_crash_for_want_of_memory_is_tried_again_once_after_others_have_gone",
    "a crash without other models fails at once":
        "test_loading_crashes::test_a_crash_for_want_of_memory_without_others_fails_at_once",
    "another crash with other models fails at once":
        "test_loading_crashes::test_a_crash_for_want_of_memory_is_tried_again_once_after_others_have_gone",
    "evicts one that loads or waits": "test_scheduler::test_where_all_are_busy_a_load_waits_for_the_first_to_end",
    "who can be evicted": "test_loading_makes_room::test_pinned_and_busy_models_stay_where_room_for_a_part_is_enough",
    "tracks several loaded runners": "test_scheduler::test_the_longest_lasting_model_comes_first",
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_situation_is_covered(situation: str) -> None:
    module, _, name = SITUATIONS[situation].partition("::")
    text = Path(__file__).with_name(f"{module}.py").read_text("utf-8")
    assert f"def {name}(" in text, SITUATIONS[situation]
