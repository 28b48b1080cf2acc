"""Bad configurations are named field by field; good ones load, hash and stay frozen."""

import inspect
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from blendem.config import ConfigError, RunConfig, config_hash, load_config, with_start
from blendem.prior import train_unet
from blendem.prior.train import Settings
from blendem.prior.unet import UNet

CONFIGS = sorted((Path(__file__).parents[1] / "config").glob("*.yaml"))


def message(mapping) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(mapping)
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_load_and_name_their_folder(path):
    assert load_config(path).run == path.stem


def test_both_calibration_runs_share_all_that_does_not_depend_on_the_tier():
    """`make calibration` links fields, blends and statistics of one into the other."""
    one, two = (
        load_config(p).model_dump()
        for p in CONFIGS
        if p.stem.startswith("calibration_")
    )
    for config in (one, two):
        del config["run"], config["prior"]["tier"], config["prior"]["train"]
    assert one == two


def test_defaults_are_those_of_the_methods_page():
    config = load_config({})
    assert (config.frame.stamp, config.frame.psf_sigma) == (49, 0.7)
    assert (config.prior.modes, config.prior.amplitude_jitter) == (128, 0.6)
    buckets = [(b.sources, b.size) for b in config.blends.buckets]
    assert buckets == [(4, 64), (8, 64), (8, 112)]


def test_every_field_is_described_and_every_quantity_has_a_unit():
    def fields(model):
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner)
            else:
                yield name, field

    found = dict(fields(RunConfig))
    assert len(found) > 40
    assert [name for name, f in found.items() if not f.description] == []
    for name in (
        "stamp",
        "psf_sigma",
        "mag_limit",
        "threshold",
        "margin",
        "pixel_scale",
    ):
        assert "[" in found[name].description, name


def test_all_bad_fields_are_listed_at_once():
    text = message(
        {
            "run": "a/b",
            "frame": {"stamp": 48},
            "infer": {"samples": -3, "sky": "curved"},
            "blends": {"buckets": [{"sources": 4, "size": "big"}]},
        }
    )
    assert "5 bad fields" in text
    assert "run: got 'a/b'" in text
    assert "frame.stamp: must be odd" in text and "got 48; use 49" in text
    assert "infer.samples: got -3" in text
    assert "infer.sky: got 'curved'" in text and "'flat'" in text
    assert "blends.buckets.0.size: got 'big'" in text


@pytest.mark.parametrize(
    ("mapping", "path", "nearest"),
    [
        ({"sed": 3}, "sed", "seed"),
        ({"infer": {"sample": 3}}, "infer.sample", "samples"),
        (
            {"blends": {"buckets": [{"sources": 1, "size": 64, "sorces": 2}]}},
            "blends.buckets.0.sorces",
            "sources",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(mapping, path, nearest):
    assert f"{path}: unknown key; did you mean '{nearest}'?" in message(mapping)


def test_an_unknown_key_that_resembles_nothing_lists_the_known_ones():
    assert "em.zzz: unknown key; known: laps, start" in message({"em": {"zzz": 1}})


def test_a_tier_that_does_not_exist_is_refused_with_those_that_do():
    text = message({"prior": {"tier": "flow"}})
    assert "prior.tier: got 'flow'" in text
    assert "'gaussian'" in text and "'latent'" in text and "'unet'" in text


def test_defaults_of_the_training_are_those_of_the_library():
    defaults = Settings()
    for name, value in load_config({}).prior.train.model_dump().items():
        assert value == getattr(defaults, name), name


def test_training_without_a_network_is_refused():
    with pytest.raises(ConfigError, match=r"prior.*train: nothing is trained"):
        load_config({"prior": {"train": {"steps": 5}}})
    config = load_config({"prior": {"network": {}, "train": {"steps": 5}}})
    assert config.prior.network.width == 512 and config.prior.train.steps == 5


def test_defaults_of_the_unet_are_those_of_the_library():
    config = load_config({"prior": {"tier": "unet"}}).prior.unet
    sizes = inspect.signature(UNet).parameters
    for name, value in config.model_dump().items():
        library = (
            sizes[name].default if name in sizes else getattr(train_unet.DEFAULTS, name)
        )
        assert value == library, name


@pytest.mark.parametrize(
    ("prior", "problem"),
    [
        ({"tier": "latent", "unet": {"steps": 5}}, "unet: nothing of it is used"),
        ({"tier": "unet", "network": {}}, "network: it corrects the mixture"),
        ({"tier": "unet", "train": {"steps": 5}}, "train: it trains the network of"),
        ({"tier": "unet", "unet": {"channels": []}}, "prior.unet.channels: got"),
    ],
)
def test_settings_of_another_tier_are_refused(prior, problem):
    assert problem in message({"prior": prior})


def test_em_of_a_unet_is_refused():
    text = message({"prior": {"tier": "unet"}, "em": {"laps": 2}})
    assert "em.laps: 2 with prior.tier: unet" in text and "use latent or" in text
    text = message({"prior": {"tier": "unet"}, "em": {"start": "map"}})
    assert "em.start: map needs prior.tier: latent" in text
    assert load_config({"prior": {"tier": "unet"}}).em.laps == 0


def test_a_shipped_prior_is_named_in_one_word():
    config = load_config({"prior": "shipped"})
    assert config.prior.start == "shipped" and config.prior.tier == "latent"
    named = with_start(config, "priors/a.eqx")
    assert named.prior.start == "priors/a.eqx" and config.prior.start == "shipped"


def test_dust_is_off_and_refuses_what_it_does_not_fit():
    assert load_config({}).dust is None and load_config({"dust": None}).dust is None
    assert load_config({"dust": {}}).dust.redshift == "redshift"
    assert "did you mean 'rank'" in message({"dust": {"ranks": 3}})
    for mapping, words in (
        ({"em": {"laps": 1}}, "set em.laps: 0, got 1"),
        ({"simulate": {"also": ["hst_f814w"]}}, "leave simulate.also and"),
        ({"simulate": {"epochs": [{"mjd": 1}, {"mjd": 2}]}}, "got ['epoch1']"),
        ({"frame": {"pixel_scale": 0.1}}, "leave frame.bands and frame.pixel_scale"),
        ({"prior": {"start": "a.eqx"}}, "leave prior.start and prior.basis out"),
    ):
        assert words in message(mapping | {"dust": {}})
        load_config(mapping)
    few = {"stamps": {"n": 9, "chunks": 1}, "prior": {"modes": 8}}
    load_config(few | {"dust": {"modes": 48, "dust_modes": 48}})
    text = message(few | {"dust": {"modes": 49, "dust_modes": 20}})
    assert "dust.modes: 49 modes cannot be learned from stamps.n = 9" in text
    assert "dust.dust_modes" not in text


def test_em_needs_a_prior_that_it_can_refit():
    network = {"tier": "latent", "network": {}}
    text = message({"prior": network, "em": {"laps": 2}})
    assert "em.laps: 2 with prior.network" in text and "leave `network` out" in text
    for tier in ("gaussian", "latent"):
        config = load_config({"prior": {"tier": tier}, "em": {"laps": 2}})
        assert config.em.laps == 2
    text = message({"prior": {"start": "a.eqx", "basis": "b.eqx"}})
    assert "prior.basis: prior.start has a basis of its own" in text
    for kind in ("map", "gaussian"):
        assert load_config({"em": {"start": kind}}).em.start == kind
        text = message({"em": {"start": kind}, "prior": {"tier": "gaussian"}})
        assert f"em.start: {kind} needs prior.tier: latent" in text
        text = message({"em": {"start": kind}, "prior": {"start": "a.eqx"}})
        assert "leave prior.start and prior.network out" in text


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"frame": {"stamp": 129}}, ["frame.stamp: 129", "64", "65 or more"]),
        (
            {"detect": {"max_sources": 9}},
            ["detect.max_sources: 9", "8", "add a bucket"],
        ),
        # 128 modes and 24 extra directions from 8 copies of each stamp: 19 stamps at least.
        (
            {"stamps": {"n": 10}},
            ["prior.modes: 128", "stamps.n = 10", "stamps.n to 19"],
        ),
        (
            {"frame": {"bands": ["g", "r"]}},
            ["infer.reference_band: 'i'", "plot.rgb: ['i']"],
        ),
        ({"frame": {"bands": ["g", "g"]}}, ["frame.bands", "once"]),
        ({"frame": {"bands": []}}, ["frame.bands", "empty"]),
        ({"stamps": {"n": 100, "chunks": 200}}, ["stamps.chunks: 200", "n = 100"]),
        (
            {"em": {"laps": 2, "held_out": 0}},
            ["em.held_out: 0", "em.laps: 2", "raise em.held_out"],
        ),
        (
            {"simulate": {"undetected_limit": 31}},
            ["simulate.undetected_limit", "31"],
        ),
        (
            {"simulate": {"mag_limit": 25, "undetected_limit": 24}},
            ["undetected_limit: 24", "mag_limit = 25"],
        ),
        ({"plot": {"rgb": ["g", "r"]}}, ["plot.rgb", "3 bands"]),
        ({"infer": {"sky": "flat", "sky_sigma": 0}}, ["infer.sky_sigma: 0"]),
        ({"frame": {"psf_sigma": float("nan")}}, ["frame.psf_sigma: got nan"]),
        ({"run": "../up"}, ["run: got '../up'", "letters"]),
        ({"infer": {"corrector": 1}}, ["infer.corrector: got 1", "less than 1"]),
        ({"stamps": {"mag_bright": 12}}, ["stamps.mag_bright: got 12"]),
    ],
)
def test_fields_that_do_not_fit_together(mapping, words):
    text = message(mapping)
    assert [word for word in words if word not in text] == []


def test_the_largest_stamp_that_fits_is_accepted():
    assert load_config({"frame": {"stamp": 127}}).frame.stamp == 127
    assert load_config({"stamps": {"n": 19}}).stamps.n == 19


def test_values_from_the_command_line_arrive_as_strings(tmp_path):
    config = load_config({"run": 2024, "fields": "mine.tsv", "seed": "7"})
    assert (config.run, config.fields, config.seed) == ("2024", "mine.tsv", 7)
    assert load_config({"fields": "null"}).fields is None
    assert load_config({"fields": ""}).fields is None
    faint = load_config({"simulate": {"undetected_limit": "null"}})
    assert faint.simulate.undetected_limit is None
    given = load_config({"prior": {"start": "a.eqx", "basis": "null"}})
    assert given.prior.basis is None
    # PyYAML follows YAML 1.1, where `1e-3` without a point is a string.
    path = tmp_path / "a.yaml"
    path.write_text("em: {min_eigenvalue: 1e-3}\nmap:\n")
    assert yaml.safe_load(path.read_text())["em"]["min_eigenvalue"] == "1e-3"
    assert load_config(path).em.min_eigenvalue == 1e-3


def test_unreadable_files(tmp_path):
    assert "missing.yaml" in message(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,\n")
    assert "not valid YAML" in message(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "got list" in message(tmp_path / "list.yaml")


def test_the_hash_follows_the_values_and_nothing_else():
    written_out = load_config({"seed": "0", "prior": {"modes": 128}})
    assert config_hash(load_config({})) == config_hash(written_out)
    assert config_hash(load_config({"seed": 1})) != config_hash(written_out)
    plot = load_config({"plot": {"dpi": 300}})
    assert config_hash(plot.em) == config_hash(written_out.em)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        load_config({}).em.laps = 3


def test_instruments_are_those_of_the_library():
    instruments = pytest.importorskip("blendem.survey.instruments")
    annotation = (
        load_config({}).simulate.__class__.model_fields["instrument"].annotation
    )
    assert set(annotation.__args__) == set(instruments.INSTRUMENTS)


def test_the_numbers_of_the_pca_are_those_of_the_library():
    from blendem import config
    from blendem.prior import pca

    assert config.PCA_OVERSAMPLING == pca.OVERSAMPLING
    assert config.N_SYMMETRIES == pca.N_SYMMETRIES
