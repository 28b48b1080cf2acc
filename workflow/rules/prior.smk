# Prior 00 from stamps, and EM: one rule, unrolled over laps, so that the graph stays acyclic
# and more laps plan only the new ones.


rule fit_prior:
    input:
        code=modules("prior/pca", "prior/gaussian", "prior/symmetry", "io/priors"),
        stamps=(
            []
            if CONFIG.prior.start
            else expand(
                f"{OUT}/stamps/{{chunk}}.npy", chunk=range(CONFIG.stamps.chunks)
            )
        ),
        start=CONFIG.prior.start or [],
    output:
        prior=f"{OUT}/prior/00.eqx",
    log:
        f"{OUT}/logs/fit_prior.log",
    benchmark:
        f"{OUT}/benchmarks/fit_prior.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        seed=CONFIG.seed,
        prior=CONFIG.prior.model_dump(),
        frame=CONFIG.frame.model_dump(),
        instrument=INSTRUMENT,
        reference_band=CONFIG.infer.reference_band,
    script:
        "../scripts/fit_prior.py"


rule em_lap:
    input:
        code=modules("inference/em", "inference/posterior", "prior/symmetry"),
        blends=all_chunks("blends/{chunk}.h5"),
        statistics=all_chunks("statistics/{chunk}.h5"),
        prior=lambda wildcards: prior_of(int(wildcards.lap) - 1),
    output:
        # Lap 00 belongs to fit_prior.
        prior=f"{OUT}/prior/{{lap,(?!00)\\d\\d}}.eqx",
        evidence=f"{OUT}/evidence/{{lap}}.csv",
    log:
        f"{OUT}/logs/em_lap/{{lap}}.log",
    benchmark:
        f"{OUT}/benchmarks/em_lap/{{lap}}.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        lap=lambda wildcards: int(wildcards.lap),
        em=CONFIG.em.model_dump(exclude={"laps", "max_chi2"}),
    script:
        "../scripts/em_lap.py"
