"""blendem: simulate or read fields, fit all blends jointly, improve the prior, report."""

from snakemake.utils import min_version

min_version("9.0")


# Only without a file of the user's: its keys must not mix with those of the example.
if not workflow.config_settings.configfiles:

    configfile: "config/quickstart.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/simulate.smk"
include: "workflow/rules/prior.smk"
include: "workflow/rules/em.smk"
include: "workflow/rules/infer.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/tiles.smk"
include: "workflow/rules/dust.smk"


# What a run makes: with galaxies behind dust, their products instead of the others.
if CONFIG.dust:
    GOALS = DUST_PRODUCTS
else:
    GOALS = [
        *expand(f"{OUT}/catalog/{{field}}.fits", field=[*FIELDS, *TILED]),
        *expand(f"{OUT}/map/{{field}}.fits", field=TILED),
        f"{OUT}/summary.json",
        f"{OUT}/report.html",
    ]


rule all:
    default_target: True
    input:
        GOALS,
