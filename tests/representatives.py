"""Which instances of a kind stand for it in the default suite; the others are slow tests.

A test that asks one thing of many instances (captures x families x ratios) asks it of some in `make test`,
and of all of them in `make slow`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

__all__ = ["EVERY", "others"]

# Of the instances that run by torch.export beside symbolic ones (a tenth of the time), one in so many.
EXPORT_EVERY = 10
# Of a file's functions that run some so, one in so many; of files about captures and certificates every one.
EXPORT_FUNCTIONS = 3
ABOUT_EXPORT = ("tests/capture/", "tests/certify/")

# Of a test's instances one in so many; and of every value that several of them share one at least.
EVERY: dict[str, int] = {
    "tests/analysis/test_analysis.py::test_both_captures_find_the_same_groups": 4,
    "tests/analysis/test_made_tokens.py::test_models_of_queries_keep_them": 2,
    "tests/analysis/test_made_tokens.py::test_what_reads_stays_whole": 2,
    "tests/capture/test_arguments.py::test_a_relation_that_the_code_asks_of_the_batch_is_guarded": 5,
    "tests/capture/test_arguments.py::test_code_that_depends_on_the_batch_is_right_or_refused": 3,
    "tests/capture/test_decisions.py::test_the_same_groups_as_by_export": 3,
    "tests/capture/test_decisions.py::test_writes_through_memory_go_to_export": 2,
    "tests/capture/test_export_sizes.py::test_another_size_is_followed": 2,
    "tests/capture/test_guards_in_tools.py::test_onnx_with_dynamic_sizes": 5,
    "tests/capture/test_guards_in_tools.py::test_other_sizes_through_a_tool": 4,
    "tests/capture/test_in_place.py::test_every_name_of_a_tensor_sees_the_write": 2,
    "tests/capture/test_in_place.py::test_memory_that_symbolic_tracing_does_not_see_is_left_to_export": 3,
    "tests/capture/test_kinds.py::test_a_mask_of_another_kind_is_refused": 5,
    "tests/capture/test_late_tables.py::test_a_table_goes_with_what_says_that_it_is_there": 4,
    "tests/capture/test_modes.py::test_a_whole_result_computes_what_the_model_does_in_both_modes": 4,
    "tests/capture/test_names.py::test_a_name_of_the_graph_module_is_refused": 4,
    "tests/capture/test_names.py::test_any_other_name_is_kept": 4,
    "tests/capture/test_other_batches.py::test_another_result_for_one_sample_is_exact_or_refused": 5,
    "tests/capture/test_other_batches.py::test_one_sample_is_taken_where_nothing_else_is_computed": 2,
    "tests/capture/test_sizes.py::test_every_batch_and_size_is_followed": 5,
    "tests/capture/test_threads.py::test_other_threads_compute_in_their_own_precision_while_one_certifies": 2,
    "tests/certify/test_choices.py::test_a_choice_among_equals_is_no_error": 3,
    "tests/certify/test_mutants.py::test_mutants_are_found": 9,
    "tests/certify/test_noise.py::test_noise_is_the_same_on_both_sides": 2,
    "tests/choose/test_budgets.py::test_a_budget_is_met_within_a_hundredth": 6,
    "tests/choose/test_budgets.py::test_steps_end_at_the_same_widths_and_are_exact": 2,
    "tests/choose/test_depth.py::test_every_residual_branch_is_found_and_named": 2,
    "tests/choose/test_depth.py::test_removal_is_certified": 12,
    "tests/choose/test_importance.py::test_exact_is_the_divergence_of_the_pruned_model": 4,
    "tests/choose/test_importance.py::test_kl_is_its_second_order": 4,
    "tests/choose/test_like.py::test_the_stock_model_loads_the_result_and_computes_the_same": 4,
    "tests/choose/test_merge.py::test_merging_is_telling_the_model_of_fewer_heads": 2,
    "tests/choose/test_merge.py::test_the_channels_of_each_merged_head_are_pruned_back": 2,
    "tests/choose/test_options.py::test_every_pair_of_options_has_both_effects": 6,
    "tests/cli/test_effects.py::test_an_option_has_an_effect_or_is_refused": 2,
    "tests/compiler/test_bases_of_a_plan.py::test_what_is_pruned_in_other_coordinates_is_certified": 2,
    "tests/compiler/test_coordinates.py::test_less_is_lost_in_chosen_coordinates": 12,
    "tests/compiler/test_configuration.py::test_its_own_saving_round_trips": 4,
    "tests/compiler/test_own_calls.py::test_it_is_pruned_again": 3,
    "tests/compiler/test_own_calls.py::test_parts_of_one_size_become_parts_of_several": 2,
    "tests/compiler/test_own_class.py::test_copies_and_folders_keep_the_form": 3,
    "tests/compiler/test_own_class.py::test_the_class_is_the_users_and_exact": 5,
    "tests/compiler/test_rebase.py::test_random_bases_change_weights_and_not_the_function": 3,
    "tests/compiler/test_rebase.py::test_small_models_of_a_kind": 2,
    "tests/compiler/test_refit_stream.py::test_a_stream_that_is_made_up_for_is_nearer": 5,
    "tests/compiler/test_root_forward.py::test_everything_that_takes_a_result_takes_it": 2,
    "tests/compiler/test_root_forward.py::test_its_modules_run_their_own_code": 3,
    "tests/compiler/test_same_graph.py::test_whatever_is_changed_in_an_instance_makes_its_graph_another": 2,
    "tests/compiler/test_search.py::test_a_choice_that_goes_further_is_kept": 2,
    "tests/compiler/test_search.py::test_what_code_keeps_is_taken_back": 2,
    "tests/compiler/test_training.py::test_it_trains_as_the_masked_original_does": 2,
    "tests/finetune/test_distill.py::test_a_student_comes_nearer_to_its_teacher": 2,
    "tests/finetune/test_distillation.py::test_the_plan_says_which_channels_are_the_same": 8,
    "tests/finetune/test_heads.py::test_a_hugging_face_one_is_loaded_again": 2,
    "tests/finetune/test_heads.py::test_other_classes_on_the_same_body": 6,
    "tests/finetune/test_processes.py::test_two_processes_equal_one_with_twice_the_batch": 2,
    "tests/finetune/test_resume.py::test_a_killed_run_ends_with_the_same_bits": 2,
    "tests/finetune/test_steps.py::test_it_is_gone_on_with_wherever_it_stopped": 3,
    "tests/finetune/test_trainer.py::test_a_student_learns": 6,
    "tests/finetune/test_trainer.py::test_accumulation_divides_the_loss": 8,
    "tests/graph/test_guards.py::test_compiled": 2,
    "tests/passes/test_checks.py::test_a_pass_that_breaks_the_graph_is_named": 12,
    "tests/passes/test_checks.py::test_a_pass_that_breaks_the_rewrite_is_named": 5,
    "tests/passes/test_lifted_layers.py::test_a_layer_is_a_layer_after_export": 6,
    "tests/passes/test_lifted_layers.py::test_a_norm_with_a_forward_of_its_own_is_a_layer": 3,
    "tests/passes/test_lifted_layers.py::test_a_whole_result_trains_as_the_model_does": 4,
    "tests/passes/test_passes.py::test_a_pass_keeps_the_values_and_is_idempotent": 2,
    "tests/passes/test_read_sizes.py::test_other_lengths_of_a_pruned_model": 3,
    "tests/passes/test_split_qkv.py::test_queries_and_values_shrink_by_their_own_ratios": 2,
    "tests/result/saved/test_onnx_file.py::test_it_computes_what_the_model_does": 4,
    "tests/result/saved/test_replaced.py::test_a_file_names_standard_layers_only": 5,
    "tests/result/saved/test_replaced.py::test_a_replaced_head_comes_back": 8,
    "tests/result/saved/test_replaced.py::test_pruned_again": 4,
    "tests/result/saved/test_saved.py::test_every_family": 6,
    "tests/result/saved/test_saved.py::test_every_other_library": 20,
    "tests/result/saved/test_saved.py::test_how_the_original_is_built_is_found_out": 3,
    "tests/result/test_copies.py::test_a_copy_is_the_same_model": 4,
    "tests/result/test_copies.py::test_torch_traces_a_result_again": 4,
    "tests/result/test_own_attention.py::test_the_users_code_is_whole_around_it": 2,
    "tests/result/test_plan.py::test_a_plan_applies_to_a_fresh_model": 2,
    "tests/result/test_prune_again.py::test_pruned_twice_is_exact": 4,
    "tests/rules/test_habits.py::test_a_repeat_whose_length_is_given_shrinks": 2,
    "tests/rules/test_habits.py::test_groups_may_cross_the_borders_of_a_concatenation": 2,
    "tests/rules/test_habits.py::test_reading_a_dtype_contracts_nothing": 4,
    "tests/rules/test_habits.py::test_what_is_written_under_a_mask_shrinks": 2,
    "tests/rules/test_laws.py::test_what_the_law_of_an_op_allows": 5,
    "tests/rules/test_rules.py::test_slicing_commutes_with_the_exported_op": 3,
    "tests/rules/test_rules.py::test_slicing_commutes_with_the_op": 2,
    "tests/rules/test_rules.py::test_what_meets_the_result_shrinks_with_it": 2,
    "tests/show/test_draw_browser.py::test_columns_do_not_run_into_each_other": 3,
    "tests/show/test_draw_browser.py::test_the_legend_is_seen": 3,
    "tests/test_contract.py::test_to_another_dtype": 4,
    "tests/test_downstream.py::test_features_are_whole_by_default": 3,
    "tests/test_downstream.py::test_features_shrink_when_asked": 3,
    "tests/test_hard_cases.py::test_both_captures_find_the_same_groups": 2,
    "tests/test_hard_cases.py::test_exact_for_heads_and_head_dims_at_any_ratio": 8,
    "tests/test_hard_cases.py::test_prunes_and_verifies": 8,
    "tests/test_hard_cases.py::test_shrinks_what_should": 4,
    "tests/test_random_bases.py::test_a_model_of_the_zoo": 4,
    "tests/test_together.py::test_it_is_certified_reported_and_drawn": 4,
    "tests/zoo/test_families.py::test_a_replaced_head_is_saved_and_loaded": 4,
    "tests/zoo/test_families.py::test_certified": 4,
    "tests/zoo/test_families.py::test_one_training_step_changes_what_it_changes_in_the_original": 10,
    "tests/zoo/test_field.py::test_certified_with_nothing_to_complain_about": 7,
    "tests/zoo/test_zoo.py::test_both_captures_find_the_same_groups": 12,
    "tests/zoo/test_zoo.py::test_certified": 6,
    "tests/zoo/test_zoo.py::test_certified_at_a_half": 8,
    "tests/zoo/test_zoo_models.py::test_certified": 6,
    "tests/zoo/test_zoo_models.py::test_torch_export_itself_refuses": 3,
}


def others(ids: Sequence[str]) -> Iterator[str]:
    """Of the tests of a run, those that others stand for."""
    functions: dict[str, list[str]] = defaultdict(list)
    for test in ids:
        functions[test.partition("[")[0]].append(test)
    exporting: Counter[str] = Counter()  # file -> its functions that run by torch.export beside symbolic ones
    for function, instances in functions.items():
        exported = [test for test in instances if "export" in _values(test)]
        plain = [test for test in instances if "export" not in _values(test)]
        every, file = EVERY.get(function, 1), function.partition("::")[0]
        beside = bool(exported) and any("symbolic" in _values(test) for test in plain)
        chosen = _chosen(plain, every)
        if not beside or file.startswith(ABOUT_EXPORT) or exporting[file] % EXPORT_FUNCTIONS == 0:
            chosen |= _chosen(exported, max(every, EXPORT_EVERY) if beside else every)
        exporting[file] += beside
        yield from (test for test in instances if test not in chosen)


def _values(test: str) -> list[str]:
    """The values of a test's parameters, as its name has them."""
    return test.partition("[")[2].removesuffix("]").split("-")


def _chosen(instances: Sequence[str], every: int) -> set[str]:
    """One in so many, and of each value that several share at least one."""
    shared = {value for value, n in Counter(v for test in instances for v in _values(test)).items() if n > 1}
    chosen: set[str] = set()
    for test in instances[::every] if every > 1 else instances:
        chosen.add(test)
        shared.difference_update(_values(test))
    for test in instances:
        if not shared.isdisjoint(_values(test)):
            chosen.add(test)
            shared.difference_update(_values(test))
    return chosen
