"""`caltune recalibrate NAME`: every name fits, applies, saves and loads; what is refused."""

import numpy as np
import pytest
from files import scores_file, strict_json

from caltune import recalibrate
from caltune.formats import read_features, read_scores, write_answers, write_scores
from caltune.recalibration import RECALIBRATORS
from caltune.types import OptionLogits

KEEP_ANSWERS = {"temperature", "platt", "beta", "isotonic", "histogram", "top-label", "umnn"}


@pytest.mark.parametrize(
    "name",
    [
        *("temperature", "vector", "matrix", "platt", "beta", "isotonic", "histogram", "top-label"),
        *("umnn", "balcal", "ace", "selective", "dece"),
    ],
)
def test_fit_apply_save_and_load(caltune, tmp_path, name):
    fit, apply = scores_file(tmp_path / "cal.parquet"), scores_file(tmp_path / "test.parquet", first=300, seed=1)
    out, again, saved = tmp_path / "out.parquet", tmp_path / "again.parquet", tmp_path / "fitted.json"
    result = caltune("recalibrate", name, "--fit", fit, "--apply", apply, "-o", out, "--save", saved)
    assert result.status == 0, result.err
    before, after = read_scores(apply), read_scores(out)
    # What was written is what the function gives.
    fitted = getattr(recalibrate, RECALIBRATORS[name][1])(read_scores(fit).scores)
    np.testing.assert_array_equal(after.scores.logits, fitted(before.scores).logits)
    assert after.scores.ids == before.scores.ids
    (told,) = after.metadata["recalibrated"]
    assert (told["name"], told["questions"]) == (name, 300)
    old, new = before.scores.decide(), after.scores.decide()
    assert old.confidence.mean() - old.correct.mean() > 0.1  # three times too sharp
    assert new.confidence.mean() == pytest.approx(new.correct.mean(), abs=0.08)
    changed = int((before.scores.logits.argmax(1) != after.scores.logits.argmax(1)).sum())
    assert changed == 0 or name not in KEEP_ANSWERS
    means = f"mean confidence {old.confidence.mean():.4f}, now {new.confidence.mean():.4f}"
    wanted = f"{means}; {changed} of 300 answers changed"
    assert result.out.splitlines()[-2:] == [wanted, str(out)]
    # Loaded, it does the same to the same questions, and still refuses those it was fitted on.
    assert strict_json(saved)["recalibrator"] == name
    assert strict_json(saved)["source"]["model"] == "cal"
    loaded = caltune("recalibrate", name, "--load", saved, "--apply", apply, "-o", again)
    assert loaded.out.splitlines()[:-1] == result.out.splitlines()[:-1]
    np.testing.assert_array_equal(read_scores(again).scores.logits, after.scores.logits)
    assert "must not meet" in caltune("recalibrate", name, "--load", saved, "--apply", fit, "-o", again).err


def test_what_was_applied_is_told_in_order(caltune, tmp_path):
    fit, apply = scores_file(tmp_path / "cal.parquet"), scores_file(tmp_path / "test.parquet", first=300, seed=1)
    for name in ("beta", "isotonic"):
        assert caltune("recalibrate", name, "--fit", fit, "--apply", apply, "-o", apply).status == 0
    first, second = read_scores(apply).metadata["recalibrated"]
    fitted = recalibrate.fit_beta(read_scores(fit).scores)
    assert first == {"name": "beta", "questions": 300, "a": fitted.a, "b": fitted.b, "offset": fitted.offset}
    assert second == {"name": "isotonic", "questions": 300}


def test_scores_of_another_model_are_warned_of(caltune, tmp_path):
    fit, same = scores_file(tmp_path / "cal.parquet"), scores_file(tmp_path / "test.parquet", first=300)
    other = scores_file(tmp_path / "other.parquet", first=600)
    write_scores(same, read_scores(same).scores, {"model": "cal", "split": "test", "left_out": 3})
    out, saved = tmp_path / "out.parquet", tmp_path / "fitted.json"
    for first in (("--fit", fit, "--save", saved), ("--load", saved)):
        assert caltune("recalibrate", "platt", *first, "--apply", same, "-o", out).err == ""
        result = caltune("recalibrate", "platt", *first, "--apply", other, "-o", out)
        assert result.status == 0
        assert result.err == "caltune: warning: fitted on scores with model 'cal', applied to scores with 'other'\n"
    answers = tmp_path / "answers.parquet"
    write_answers(answers, read_scores(other).scores.decide(), {"model": "other"})
    for first in (("--fit", fit), ("--load", saved)):
        assert caltune("recalibrate", "platt", *first, "--apply", answers, "-o", out).err == result.err
    write_scores(same, read_scores(same).scores, {"model": "cal", "temperature": 2.0})
    result = caltune("recalibrate", "platt", "--fit", fit, "--apply", same, "-o", out)
    assert "fitted on scores with temperature None, applied to scores with 2.0" in result.err


def test_what_is_refused(refused, caltune, tmp_path):
    fit, apply = scores_file(tmp_path / "cal.parquet", 40), scores_file(tmp_path / "test.parquet", 40, first=40)
    saved, broken, out = tmp_path / "fitted.json", tmp_path / "broken.json", tmp_path / "out.parquet"
    assert caltune("recalibrate", "platt", "--fit", fit, "--apply", apply, "-o", out, "--save", saved).status == 0
    out.unlink()
    rest = ("--apply", apply, "-o", out)
    message = refused("recalibrate", "beta", "--load", saved, *rest)
    assert f"{saved}: must hold a recalibrator of the name 'beta', got 'platt'" in message
    assert "not allowed with argument" in refused("recalibrate", "platt", "--fit", fit, "--load", saved, *rest)
    assert "No such file" in refused("recalibrate", "platt", "--load", tmp_path / "no.json", *rest)
    assert "the folder must exist" in refused("recalibrate", "platt", "--fit", fit, *rest, "--save", "no/f.json")
    other = tmp_path / "." / "x" / ".." / "out.parquet"
    (tmp_path / "x").mkdir()
    assert "-o and --save must be two files" in refused("recalibrate", "platt", "--fit", fit, *rest, "--save", other)
    for text, wanted in (
        ("{", "must be JSON"),
        ("[]", "must hold a recalibrator of the name 'platt', got None"),
        ('{"recalibrator": "platt"}', f"{broken}: Platt scaling needs the keys"),
        (f'{{"recalibrator": "platt", "slope": 1{"0" * 400}, "offset": 0, "fitted_on": []}}', "'slope' must be a fin"),
    ):
        broken.write_text(text)
        assert wanted in refused("recalibrate", "platt", "--load", broken, *rest)
    write_scores(apply, read_scores(apply).scores, {"recalibrated": "platt"})
    assert "'recalibrated' must be a list of what was applied, got 'platt'" in refused(
        "recalibrate", "platt", "--fit", fit, *rest
    )
    assert not out.exists()


# What needs more than the scores of one file.


@pytest.fixture
def written(tmp_path):
    """`written(name, count, first, shift)` is a scores file with features, in which kind and truth go together."""

    def write(name, count, first, shift=0.0, features=True):
        path = scores_file(tmp_path / f"{name}.parquet", count, first=first, seed=first)
        generator = np.random.default_rng(first)
        found = generator.normal(loc=shift, size=(count, 3))
        # Where the first feature is positive the model is right half as often as before.
        file = read_scores(path)
        wrong = (found[:, 0] > 0) & (generator.random(count) < 0.5)
        labels = np.where(wrong, (file.scores.labels + 1) % 4, file.scores.labels)
        scores = OptionLogits(file.scores.ids, file.scores.logits, labels)
        write_scores(path, scores, file.metadata, features=found * [4, 1, 1] if features else None)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "flags"), [("lore", ()), ("umnn", ("--features",)), ("balcal", ("--features",)), ("umnn", ())]
)
def test_features_are_read_from_the_scores_files(caltune, tmp_path, written, name, flags):
    fit, apply = written("cal", 200, 0), written("test", 150, 1000)
    out, again, saved = tmp_path / "out.parquet", tmp_path / "again.parquet", tmp_path / "fitted.json"
    rest = ("--apply", apply, "-o")
    result = caltune("recalibrate", name, *flags, "--fit", fit, *rest, out, "--save", saved)
    assert result.status == 0, result.err
    function = getattr(recalibrate, RECALIBRATORS[name][1])
    seen, new = ([read_features(path)] if flags or name == "lore" else [] for path in (fit, apply))
    wanted = function(read_scores(fit).scores, *seen)(read_scores(apply).scores, *new)
    np.testing.assert_array_equal(read_scores(out).scores.logits, wanted.logits)
    assert caltune("recalibrate", name, "--load", saved, *rest, again).status == 0  # it knows what it needs
    np.testing.assert_array_equal(read_scores(again).scores.logits, wanted.logits)


@pytest.mark.parametrize("name", ["shift", "transcal"])
def test_the_target_is_what_is_applied_to_unless_another_is_given(caltune, tmp_path, written, name):
    fit, apply, other = written("cal", 500, 0), written("test", 500, 1000, shift=1.0), written("far", 300, 5000, -1.0)
    out = tmp_path / "out.parquet"
    temperatures = []
    for flags in ((), ("--target", apply), ("--target", other)):
        result = caltune("recalibrate", name, "--fit", fit, "--apply", apply, *flags, "-o", out)
        assert result.status == 0, result.err
        assert result.out.startswith("weighted to look like the target: worth ")
        temperatures.append(read_scores(out).metadata["temperature"])
    # More questions with a positive first feature: less often right, so a higher temperature.
    assert temperatures[0] == temperatures[1] > 1.1 * temperatures[2]
    weights = recalibrate.density_ratio(read_features(fit), read_features(other))
    seen, far = read_scores(fit).scores, read_scores(other).scores
    wanted = (
        recalibrate.fit_weighted_temperature(seen, weights)
        if name == "shift"
        else recalibrate.fit_transcal(seen, far, weights)
    )
    assert temperatures[2] == pytest.approx(wanted.temperature)


@pytest.mark.parametrize("given", [(1.5, 2.0), (1.5, None), (2.0, 2.0), (None, None)])
def test_a_pool_tells_a_temperature_only_where_its_members_share_it(caltune, tmp_path, given):
    fits, applies = [], []
    for i, temperature in enumerate(given):
        for found, first in ((fits, 0), (applies, 100)):
            found.append(scores_file(tmp_path / f"{i}-{first}.parquet", 100, first=first))
            file = read_scores(found[-1])
            own = {} if temperature is None else {"temperature": temperature}
            write_scores(found[-1], file.scores, {**file.metadata, **own})
    out = tmp_path / "out.parquet"
    assert caltune("recalibrate", "pool", "--fit", *fits, "--apply", *applies, "-o", out).status == 0
    metadata = read_scores(out).metadata
    if given[0] == given[1]:
        assert metadata.get("temperature") == given[0]
        assert "pooled_temperatures" not in metadata
    else:
        assert "temperature" not in metadata
        assert metadata["pooled_temperatures"] == [1.0 if one is None else one for one in given]


def test_a_pool_takes_several_files(caltune, refused, tmp_path):
    fits = [scores_file(tmp_path / f"cal{i}.parquet", 100, sharpness=2.0 + i) for i in range(2)]
    applies = [scores_file(tmp_path / f"test{i}.parquet", 80, first=100, sharpness=2.0 + i) for i in range(2)]
    out, saved = tmp_path / "out.parquet", tmp_path / "pool.json"
    result = caltune("recalibrate", "pool", "--fit", *fits, "--apply", *applies, "-o", out, "--save", saved)
    assert result.status == 0, result.err
    wanted = recalibrate.fit_pool([read_scores(path).scores for path in fits])
    after = read_scores(out)
    np.testing.assert_array_equal(after.scores.logits, wanted([read_scores(path).scores for path in applies]).logits)
    assert after.metadata["pooled"] == ["test0", "test1"]
    assert f"pool: members 2, temperature {wanted.temperature.temperature:.4f}, fitted on 100 questions" in result.out
    message = refused("recalibrate", "pool", "--load", saved, "--apply", applies[0], "-o", out)
    assert "this pool was fitted on 2 members, got 1" in message


def test_flags_that_do_not_belong_are_refused(refused, tmp_path, written):
    fit, apply = written("cal", 40, 0), written("test", 40, 1000)
    plain, out = written("plain", 40, 2000, features=False), tmp_path / "out.parquet"
    wide = scores_file(tmp_path / "wide.parquet", 40, first=3000)
    write_scores(wide, read_scores(wide).scores, {}, features=np.eye(40))
    rest = ("--apply", apply, "-o", out)
    for arguments, wanted in (
        (("platt", "--fit", fit, fit, *rest), "--fit: platt takes one file, only pool takes several; got 2"),
        (("platt", "--fit", fit, "--target", apply, *rest), "--target is for fitting shift and transcal, got it with"),
        (("beta", "--fit", fit, "--features", *rest), "--features is for umnn, balcal, lore, shift, transcal, got it"),
        (("umnn", "--load", "x.json", "--features", *rest), "--features is for fitting"),
        (("umnn", "--load", "x.json", "--save", "y.json", *rest), "--save keeps what --fit has fitted"),
        (("lore", "--fit", plain, *rest), f"{plain}: needs the column 'features', which `caltune score --features`"),
        (("lore", "--fit", fit, "--apply", plain, "-o", out), f"{plain}: needs the column 'features'"),
        (("shift", "--fit", fit, "--target", plain, *rest), f"{plain}: needs the column 'features'"),
        (("shift", "--fit", fit, "--target", fit, *rest), "the target must not meet questions it was fitted on"),
        (("shift", "--fit", fit, "--target", wide, *rest), f"{fit}, {wide}: target features must have the shape"),
    ):
        assert wanted in refused("recalibrate", *arguments)
    assert not out.exists()
