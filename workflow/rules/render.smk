"""Figures, tables, the summary page and the replay page of a comparison."""

FIGURES = (
    "dataset",
    "scans",
    "lines",
    "stopping",
    "differences",
    "groups",
    "roc",
    "confusion",
    "calibration",
    "learning",
    "examples",
    "agreement",
)


rule render:
    input:
        scores="results/comparisons/{comparison}/scores",
        runs=histories,
        predictions=predictions,
        scans=data_of(compared, "scans"),
        store=store_of(compared),
        split=split_of(compared),
        people=comparison_people,
        code=code(
            "scanbench.render",
            f"scanbench.{config['study']}.figures",
            f"scanbench.{config['study']}.replay_page",
        ),
    output:
        **{
            name: report(
                f"results/comparisons/{{comparison}}/figures/{name}.svg",
                caption=f"../report/{name}.rst",
                category="{comparison}",
                labels={"result": name},
            )
            for name in FIGURES
        },
        summary=report(
            "results/comparisons/{comparison}/summary.html",
            caption="../report/summary.rst",
            category="{comparison}",
            labels={"result": "summary"},
        ),
        replay=report(
            "results/comparisons/{comparison}/replay.html",
            caption="../report/replay.rst",
            category="{comparison}",
            labels={"result": "replay"},
        ),
        provenance="results/comparisons/{comparison}/render.json",
        table=report(
            "results/comparisons/{comparison}/tables/main.csv",
            caption="../report/main.rst",
            category="{comparison}",
            labels={"result": "main table"},
        ),
        record="results/records/render/{comparison}.json",
    log:
        "results/logs/render/{comparison}.log",
    benchmark:
        "results/benchmarks/render/{comparison}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.render_spec(config, wildcards.comparison),
        people=people_option,
    shell:
        recorded(
            "render {params.people:q} --spec {params.spec:q} {input.scores:q} {input.scans:q}"
            " {input.store:q} {input.split:q} $(dirname {output.summary:q})"
        )
