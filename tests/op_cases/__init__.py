"""Calls of every op that has a rule, for the tests of rules."""

from __future__ import annotations

from op_cases.case import Case, Cases
from op_cases.contractions import contraction_cases
from op_cases.elementwise import deep_elementwise_cases, elementwise_cases
from op_cases.joining import joining_cases
from op_cases.places import (
    lookup_cases,
    order_cases,
    stacking_cases,
    wider_pixel_cases,
    wider_source_cases,
)
from op_cases.reductions import normalisation_cases, reduction_cases
from op_cases.reshaping import deep_cases, reshaping_cases
from op_cases.spatial import fourier_cases, source_cases, spatial_cases
from op_cases.vectors import distance_cases, loss_cases, matrix_cases, recurrent_cases


def all_cases() -> list[Case]:
    cases = Cases()
    for family in (
        elementwise_cases,
        deep_elementwise_cases,
        contraction_cases,
        joining_cases,
        reduction_cases,
        normalisation_cases,
        reshaping_cases,
        deep_cases,
        source_cases,
        spatial_cases,
        fourier_cases,
        loss_cases,
        distance_cases,
        recurrent_cases,
        matrix_cases,
        order_cases,
        lookup_cases,
        stacking_cases,
        wider_pixel_cases,
        wider_source_cases,
    ):
        family(cases)
    return cases.all


CASES = all_cases()
