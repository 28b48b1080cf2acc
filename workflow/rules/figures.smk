# Figures of the run, and the report that holds them all.

PLOT = CONFIG.plot.model_dump()
BAND = CONFIG.infer.reference_band
# One field stands for all.
SHOWN = FIELDS[0]
FIGURES = ["field", "blends", "sources", "chi2", "prior"]
if TRAINED:
    FIGURES += ["training"]
if GAUSSIAN_LAPS:
    FIGURES += ["evidence"]
elif LAPS:
    FIGURES += ["em", "em_priors"]
if SIMULATED:
    FIGURES += ["flux_error", "coverage"]
if EPOCHS:
    FIGURES += ["light_curves"]
if TILED:
    # A tile also shows blends of its neighbours, which are modelled there.
    FIGURES[0] = "mosaic"
FIGURES += ["rules"]


rule plot_field:
    input:
        code=code_of("plot_field"),
        catalog=f"{OUT}/catalog/{SHOWN}.fits",
        models=f"{OUT}/models/{SHOWN}.fits",
    output:
        f"{OUT}/figures/field.png",
    log:
        f"{OUT}/logs/plot_field.log",
    benchmark:
        f"{OUT}/benchmarks/plot_field.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        band=BAND,
        plot=PLOT,
    script:
        "../scripts/plot_field.py"


rule plot_blends:
    input:
        code=code_of("plot_blends"),
        blends=f"{OUT}/scores/blends.csv",
        catalogs=expand(f"{OUT}/catalog/{{field}}.fits", field=FIELDS),
        models=expand(f"{OUT}/models/{{field}}.fits", field=FIELDS),
        prior=prior_of(LAPS),
    output:
        f"{OUT}/figures/blends.png",
    log:
        f"{OUT}/logs/plot_blends.log",
    benchmark:
        f"{OUT}/benchmarks/plot_blends.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        band=BAND,
        plot=PLOT,
    script:
        "../scripts/plot_blends.py"


rule plot_sources:
    input:
        code=code_of("plot_sources"),
        catalogs=expand(f"{OUT}/catalog/{{field}}.fits", field=FIELDS),
        models=expand(f"{OUT}/models/{{field}}.fits", field=FIELDS),
        samples=expand(f"{OUT}/samples/{{field}}.h5", field=FIELDS),
        truths=expand(f"{OUT}/truth/{{field}}.h5", field=FIELDS) if SIMULATED else [],
        prior=prior_of(LAPS),
    output:
        f"{OUT}/figures/sources.png",
    log:
        f"{OUT}/logs/plot_sources.log",
    benchmark:
        f"{OUT}/benchmarks/plot_sources.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        band=BAND,
        plot=PLOT,
    script:
        "../scripts/plot_sources.py"


rule plot_chi2:
    input:
        code=code_of("plot_chi2"),
        blends=f"{OUT}/scores/blends.csv",
        observations=f"{OUT}/scores/observations.csv",
    output:
        f"{OUT}/figures/chi2.png",
    log:
        f"{OUT}/logs/plot_chi2.log",
    benchmark:
        f"{OUT}/benchmarks/plot_chi2.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        bands=BANDS,
        plot=PLOT,
    script:
        "../scripts/plot_chi2.py"


rule plot_evidence:
    input:
        code=code_of("plot_evidence"),
        laps=f"{OUT}/scores/evidence.csv",
    output:
        f"{OUT}/figures/evidence.png",
    log:
        f"{OUT}/logs/plot_evidence.log",
    benchmark:
        f"{OUT}/benchmarks/plot_evidence.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        plot=PLOT,
    script:
        "../scripts/plot_evidence.py"


rule plot_prior:
    input:
        code=code_of("plot_prior"),
        basis=BASIS,
        last=prior_of(LAPS),
        stamps=[] if GIVEN and not TRAINED else STAMPS[:1],
    output:
        f"{OUT}/figures/prior.png",
    log:
        f"{OUT}/logs/plot_prior.log",
    benchmark:
        f"{OUT}/benchmarks/plot_prior.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        seed=CONFIG.seed,
        band=BAND,
        prior=CONFIG.prior.model_dump(exclude={"train", "network", "unet"}),
        plot=PLOT,
    script:
        "../scripts/plot_prior.py"


rule plot_training:
    input:
        code=code_of("plot_training"),
        curve=f"{OUT}/prior/00.csv",
    output:
        f"{OUT}/figures/training.png",
    log:
        f"{OUT}/logs/plot_training.log",
    benchmark:
        f"{OUT}/benchmarks/plot_training.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        plot=PLOT,
    script:
        "../scripts/plot_training.py"


rule plot_flux_error:
    input:
        code=code_of("plot_flux_error"),
        sources=f"{OUT}/scores/sources.csv",
    output:
        f"{OUT}/figures/flux_error.png",
    log:
        f"{OUT}/logs/plot_flux_error.log",
    benchmark:
        f"{OUT}/benchmarks/plot_flux_error.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        seed=CONFIG.seed,
        band=BAND,
        plot=PLOT,
    script:
        "../scripts/plot_flux_error.py"


rule plot_coverage:
    input:
        code=code_of("plot_coverage"),
        sources=f"{OUT}/scores/sources.csv",
    output:
        f"{OUT}/figures/coverage.png",
    log:
        f"{OUT}/logs/plot_coverage.log",
    benchmark:
        f"{OUT}/benchmarks/plot_coverage.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        seed=CONFIG.seed,
        band=BAND,
        n_samples=CONFIG.infer.samples,
        plot=PLOT,
    script:
        "../scripts/plot_coverage.py"


rule plot_light_curves:
    input:
        code=code_of("plot_light_curves"),
        catalogs=expand(f"{OUT}/catalog/{{field}}.fits", field=FIELDS),
        truths=expand(f"{OUT}/truth/{{field}}.h5", field=FIELDS) if SIMULATED else [],
    output:
        f"{OUT}/figures/light_curves.png",
    log:
        f"{OUT}/logs/plot_light_curves.log",
    benchmark:
        f"{OUT}/benchmarks/plot_light_curves.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        plot=PLOT,
    script:
        "../scripts/plot_light_curves.py"


rule plot_rules:
    input:
        code=code_of("plot_rules"),
        snakefile=f"{workflow.basedir}/Snakefile",
        rules=sorted(
            str(path)
            for path in (Path(workflow.basedir) / "workflow/rules").glob("*.smk")
        ),
    output:
        f"{OUT}/figures/rules.png",
    log:
        f"{OUT}/logs/plot_rules.log",
    benchmark:
        f"{OUT}/benchmarks/plot_rules.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        # As Snakemake was given it: the rules are those of this run.
        settings=dict(config),
        fields=list(TILED),
        plot=PLOT,
    script:
        "../scripts/plot_rules.py"


rule make_report:
    input:
        code=code_of("make_report"),
        template=f"{workflow.basedir}/workflow/report/report.html.j2",
        summary=f"{OUT}/summary.json",
        provenance=f"{OUT}/provenance.json",
        catalogs=expand(f"{OUT}/catalog/{{field}}.fits", field=WHOLE_FIELDS),
        figures=expand(f"{OUT}/figures/{{figure}}.png", figure=FIGURES),
        captions=expand(
            f"{workflow.basedir}/workflow/report/{{figure}}.rst", figure=FIGURES
        ),
    output:
        report=f"{OUT}/report.html",
    log:
        f"{OUT}/logs/make_report.log",
    benchmark:
        f"{OUT}/benchmarks/make_report.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        title=CONFIG.title or CONFIG.run,
        band=BAND,
        rows=20,
    script:
        "../scripts/make_report.py"
