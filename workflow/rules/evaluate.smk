# Scores, headline numbers, provenance.


rule score:
    input:
        code=code_of("score"),
        catalogs=expand(f"{OUT}/catalog/{{field}}.fits", field=FIELDS),
        models=expand(f"{OUT}/models/{{field}}.fits", field=FIELDS),
        samples=expand(f"{OUT}/samples/{{field}}.h5", field=FIELDS),
        truths=expand(f"{OUT}/truth/{{field}}.h5", field=FIELDS) if SIMULATED else [],
        prior=prior_of(LAPS),
        chunks=all_chunks("measured/{chunk}.h5"),
        evidence=[
            f"{OUT}/evidence/{lap:02d}.csv" for lap in range(1, GAUSSIAN_LAPS + 1)
        ],
    output:
        sources=f"{OUT}/scores/sources.csv",
        blends=f"{OUT}/scores/blends.csv",
        observations=f"{OUT}/scores/observations.csv",
        laps=f"{OUT}/scores/evidence.csv",
        light_curves=[f"{OUT}/scores/light_curves.csv"] if TRUE_CURVES else [],
    log:
        f"{OUT}/logs/score.log",
    benchmark:
        f"{OUT}/benchmarks/score.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        reference_band=CONFIG.infer.reference_band,
        last_lap=GAUSSIAN_LAPS,
    script:
        "../scripts/score.py"


rule summarise:
    input:
        code=code_of("summarise", "provenance"),
        sources=f"{OUT}/scores/sources.csv",
        blends=f"{OUT}/scores/blends.csv",
        laps=f"{OUT}/scores/evidence.csv",
        prior=prior_of(LAPS),
        statistics=all_chunks("statistics/{chunk}.h5"),
        posteriors=all_chunks("posterior/{chunk}.h5"),
        maps=all_chunks("map/{chunk}.h5"),
    output:
        summary=f"{OUT}/summary.json",
        provenance=f"{OUT}/provenance.json",
    log:
        f"{OUT}/logs/summarise.log",
    benchmark:
        f"{OUT}/benchmarks/summarise.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        seed=CONFIG.seed,
        config=CONFIG.model_dump(),
        command=f"snakemake --cores 2 --configfile {CONFIGFILE}",
    script:
        "../scripts/summarise.py"
