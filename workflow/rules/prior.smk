# The basis and prior 00 from stamps.

STAMPS = expand(f"{OUT}/stamps/{{chunk}}.npy", chunk=range(CONFIG.stamps.chunks))
# A denoiser is trained unless there is one already.
# A prior whose basis and moments are taken.
GIVEN = CONFIG.prior.start or CONFIG.prior.basis
# A given prior counts by its content: one that is copied or made again, byte for byte, makes
# nothing else anew.
GIVEN_SHA256 = file_sha256(GIVEN) if GIVEN else None
TRAINED = (
    CONFIG.prior.tier != "gaussian"
    and START_TIER in (None, "gaussian")
    and CONFIG.em.start == "simulations"
)


rule fit_basis:
    input:
        code=code_of("fit_basis", "io/priors"),
        stamps=[] if GIVEN else STAMPS,
        start=ancient(GIVEN) if GIVEN else [],
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
        prior=CONFIG.prior.model_dump(exclude={"tier", "network", "train", "unet"}),
        frame=CONFIG.frame.model_dump(),
        instruments=EYES,
        reference_band=CONFIG.infer.reference_band,
        given_sha256=GIVEN_SHA256,
    script:
        "../scripts/fit_basis.py"


if CONFIG.em.start == "simulations":

    rule train_prior:
        input:
            code=code_of("train_prior", "io/priors"),
            basis=BASIS,
            stamps=STAMPS if TRAINED else [],
            start=ancient(CONFIG.prior.start) if CONFIG.prior.start else [],
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
        threads: CORES if TRAINED else 1
        params:
            seed=CONFIG.seed,
            prior=CONFIG.prior.model_dump(exclude={"modes"}),
            reference_band=CONFIG.infer.reference_band,
            given_sha256=GIVEN_SHA256,
            # Not an output: Snakemake removes those of a job that was cut off.
            checkpoint=f"{OUT}/checkpoints/train_prior.ckpt",
        script:
            "../scripts/train_prior.py"

else:

    rule em_start:
        input:
            code=code_of("em_start"),
            blends=all_chunks("blends/{chunk}.h5"),
            statistics=all_chunks("statistics/{chunk}.h5"),
            basis=BASIS,
        output:
            prior=f"{OUT}/prior/00.eqx",
            evidence=f"{OUT}/em/start.csv",
        log:
            f"{OUT}/logs/em_start.log",
        benchmark:
            f"{OUT}/benchmarks/em_start.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            em=CONFIG.em.model_dump(
                include={
                    "start",
                    "start_iterations",
                    "draws",
                    "rows",
                    "shrink",
                    "symmetric",
                    "min_eigenvalue",
                    "held_out",
                }
            ),
            prior=CONFIG.prior.model_dump(
                include={"latent", "components", "amplitude_jitter", "brightness"}
            ),
            reference_band=CONFIG.infer.reference_band,
            seed=CONFIG.seed,
        script:
            "../scripts/em_start.py"
