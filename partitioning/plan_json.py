"""Plans as JSON: printed, saved, edited by hand and read back."""

from __future__ import annotations

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from partitioning.coverage import check_plan
from partitioning.model_spec import ModelSpec, RopeSpec
from partitioning.plan import Plan, PlanError, Prediction, RankPlan, Span

# A misspelt field in an edited plan is an error; left alone, pydantic would drop it.
for _record in (Plan, RankPlan, Span, Prediction, ModelSpec, RopeSpec):
    with_config(ConfigDict(extra="forbid"))(_record)

_PLAN = TypeAdapter(Plan)


def plan_to_json(plan: Plan) -> str:
    """The whole plan, its model's description included, as indented JSON that ends in a newline."""
    return _PLAN.dump_json(plan, indent=2).decode() + "\n"


def plan_from_json(text: str | bytes) -> Plan:
    """A plan written by plan_to_json, possibly edited since.

    Raises:
        PlanError: not JSON, a field missing, unknown or of the wrong type, or slices that do not make up the model.
    """
    try:
        plan = _PLAN.validate_json(text)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'plan'}: {fault['msg']}" for fault in error.errors()]
        raise PlanError(f"not a plan: {'; '.join(faults[:5])}") from error
    check_plan(plan)
    return plan
