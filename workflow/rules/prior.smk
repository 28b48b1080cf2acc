# The basis and prior 00 from stamps, and EM: one rule, unrolled over laps, so that the graph
# stays acyclic and more laps plan only the new ones.

STAMPS = expand(f"{OUT}/stamps/{{chunk}}.npy", chunk=range(CONFIG.stamps.chunks))
# A denoiser is trained unless there is one already.
TRAINED = CONFIG.prior.tier != "gaussian" and START_TIER in (None, "gaussian")


rule fit_basis:
    input:
        code=modules(
            "prior/pca",
            "prior/stamps",
            "prior/gaussian",
            "prior/symmetry",
            "io/priors",
        ),
        stamps=[] if CONFIG.prior.start else STAMPS,
        start=CONFIG.prior.start or [],
    output:
        basis=BASIS,
    log:
        f"{OUT}/logs/fit_basis.log",
    benchmark:
        f"{OUT}/benchmarks/fit_basis.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        seed=CONFIG.seed,
        prior=CONFIG.prior.model_dump(exclude={"tier", "network", "train"}),
        frame=CONFIG.frame.model_dump(),
        instrument=INSTRUMENT,
        reference_band=CONFIG.infer.reference_band,
    script:
        "../scripts/fit_basis.py"


rule train_prior:
    input:
        code=modules(
            "prior/train",
            "prior/network",
            "prior/latent",
            "prior/mixture",
            "prior/mixture_fit",
            "prior/schedule",
            "prior/stamps",
            "io/priors",
        ),
        basis=BASIS,
        stamps=STAMPS if TRAINED else [],
        start=CONFIG.prior.start or [],
    output:
        prior=f"{OUT}/prior/00.eqx",
        curve=f"{OUT}/prior/00.csv",
    log:
        f"{OUT}/logs/train_prior.log",
    benchmark:
        f"{OUT}/benchmarks/train_prior.tsv"
    conda:
        "../../envs/blendem.yaml"
    # It fills all cores: nothing runs beside it.
    threads: (workflow.cores or 1) if TRAINED else 1
    params:
        seed=CONFIG.seed,
        prior=CONFIG.prior.model_dump(exclude={"modes"}),
        reference_band=CONFIG.infer.reference_band,
        # Not an output: Snakemake removes those of a job that was cut off.
        checkpoint=f"{OUT}/checkpoints/train_prior.ckpt",
    script:
        "../scripts/train_prior.py"


rule em_lap:
    input:
        code=modules("inference/em", "inference/posterior", "prior/symmetry"),
        blends=all_chunks("blends/{chunk}.h5"),
        statistics=all_chunks("statistics/{chunk}.h5"),
        prior=lambda wildcards: prior_of(int(wildcards.lap) - 1),
    output:
        # Lap 00 belongs to train_prior.
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
