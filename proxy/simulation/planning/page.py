"""A plan becomes one page of HTML that needs nothing else. What files or users named is escaped."""

from collections.abc import Callable, Sequence

import jinja2

from proxy.simulation.planning.outcome import COLUMNS, IDLE, Plan, advice, rows_of
from proxy.simulation.planning.trial import Trial
from proxy.simulation.report import charts
from proxy.simulation.report.axes import Axis, from_zero, named

_TEMPLATES = jinja2.Environment(
    loader=jinja2.ChoiceLoader(
        [
            jinja2.PackageLoader("proxy.simulation.planning", "templates"),
            jinja2.PackageLoader("proxy.simulation.report", "templates"),
        ]
    ),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page_of(plan: Plan) -> str:
    """The page of a plan. The same plan gives the same page."""
    looks = charts.looks_of([split.fleet for split in plan.splits])
    return _TEMPLATES.get_template("plan.html").render(
        plan=plan,
        advice=advice(plan),
        about=_about(plan),
        columns=COLUMNS,
        rows=rows_of(plan),
        looks=looks.values(),
        plots=_plots(plan, looks),
        bars=[_limits(plan, looks)],
        charts=charts,
    )


def _about(plan: Plan) -> list[tuple[str, str]]:
    task, setup = plan.task, plan.task.setup
    traffic = f"{task.workload}: {task.requests} requests, {task.source}"
    if task.per_s is not None:
        traffic += f"; {task.per_s:.3g} requests a second"
    sample = "none: all of the traffic was served in each run"
    if task.sample is not None:
        where = f"from {task.sample.from_s:.0f} to {task.sample.to_s:.0f} s, where they are densest"
        sample = f"{task.sample.requests} requests, {where}"
    goals = (
        f"{100 * task.share:.4g} % of requests: first token within {setup.goals.ttft_ms:g} ms, then"
        f" {setup.goals.tpot_ms:g} ms a token in mean"
    )
    return [
        ("traffic", traffic),
        ("sample", sample),
        ("GPUs", f"{task.gpus}, {task.gpus_per_instance} for each instance"),
        ("goals", goals),
        ("policy", setup.policy),
        ("bypass", {None: "auto", 0: "off"}.get(setup.bypass_tokens, f"{setup.bypass_tokens} tokens")),
        ("engines", f"profile {setup.profile}"),
        ("KV events", f"in the index {1000 * setup.event_delay_s:g} ms after an engine's step"),
        ("seed", str(setup.seed)),
        ("runs", f"{len(plan.trials)} in {plan.wall_s:.0f} s"),
    ]


def _plots(plan: Plan, looks: dict[str, charts.Look]) -> list[charts.Plot]:
    shown = [t for t in plan.trials if t.whole == (plan.task.sample is None) and t.speed > IDLE]
    if not shown:
        return []
    x_axis = from_zero(max(1.0, *(trial.speed for trial in shown)))
    kept = [trial for trial in shown if not trial.left]
    rate = from_zero(max((trial.good_per_s for trial in kept), default=1.0))
    return [
        _plot(
            "Requests that met the goals", "% of all", plan, shown, looks, x_axis, from_zero(100.0),
            lambda trial: 100 * trial.good, 100 * plan.task.share,
        ),
        _plot(
            "Goodput", "good requests a second", plan, kept, looks, x_axis, rate,
            lambda trial: trial.good_per_s, None,
        ),
    ]  # fmt: skip


def _plot(
    title: str,
    unit: str,
    plan: Plan,
    trials: Sequence[Trial],
    looks: dict[str, charts.Look],
    x_axis: Axis,
    y_axis: Axis,
    of: Callable[[Trial], float],
    wanted: float | None,
) -> charts.Plot:
    def x(load: float) -> float:
        return _between(charts.LEFT + 8, charts.RIGHT - 8, x_axis.share(load))

    def y(value: float) -> float:
        return _between(charts.BOTTOM, charts.TOP, y_axis.share(value))

    curves = []
    for name, look in looks.items():
        marks = [
            charts.Mark(
                x(trial.speed),
                y(of(trial)),
                f"{name} at {trial.speed:g} times the load: {'less than ' if trial.left else ''}"
                f"{of(trial):.3g} {unit}",
            )
            for trial in sorted(trials, key=lambda trial: trial.speed)
            if trial.fleet == name
        ]
        if marks:
            curves.append(charts.Curve(look, " ".join(f"{mark.x:g},{mark.y:g}" for mark in marks), marks))
    rules = [charts.Rule(x(1.0), charts.BOTTOM, x(1.0), charts.TOP, "as recorded")]
    if wanted is not None:
        rules.append(charts.Rule(charts.LEFT, y(wanted), charts.RIGHT, y(wanted), f"{plan.task.share:.0%}"))
    return charts.Plot(
        title,
        unit,
        [charts.Tick(x(tick), named(tick)) for tick in x_axis.ticks],
        [charts.Tick(y(tick), named(tick)) for tick in y_axis.ticks],
        curves,
        rules,
    )


def _limits(plan: Plan, looks: dict[str, charts.Look]) -> charts.Bars:
    """The load that each split carries."""
    axis = from_zero(max((split.meets or 0.0 for split in plan.splits), default=1.0), most=5)
    return charts.Bars(
        "Carries",
        "highest load that met the goals (times as recorded)",
        charts.BAR_TOP + charts.BAR_STEP * len(plan.splits),
        [charts.Tick(_between(1, charts.BAR_RIGHT, axis.share(tick)), named(tick)) for tick in axis.ticks],
        [
            charts.Bar(
                looks[split.fleet],
                charts.BAR_TOP + charts.BAR_STEP * place,
                _between(0, charts.BAR_RIGHT - 1, axis.share(split.meets or 0.0)),
                "none" if split.meets is None else f"{split.meets:g}{_remark(split.fleet, plan)}",
            )
            for place, split in enumerate(plan.splits)
        ],
    )


def _remark(fleet: str, plan: Plan) -> str:
    return " take" if fleet == plan.take else ""


def _between(first: float, last: float, share: float) -> float:
    return round(first + (last - first) * share, 1)
