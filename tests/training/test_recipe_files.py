"""Recipe files: found, overridden, checked key by key; a message names the place of an error."""

import re
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import timm
import yaml

from densefeat import UsageError
from densefeat.nets.zoo import VARIANTS
from densefeat.training.recipe import Recipe
from densefeat.training.recipe_files import dump_recipe, load_recipe, recipe_names, recipe_text

NAME = "cifar10_densenet_bc100_k12"
TEXT = recipe_text(NAME)
KEYS = [field.name for field in fields(Recipe) if field.default is MISSING]
DEFAULTS = {field.name: field.default for field in fields(Recipe) if field.default is not MISSING}  # recipes may leave them out
LR_LINE = TEXT.splitlines().index("lr: 0.1") + 1


@pytest.fixture(params=recipe_names("densefeat train"))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a recipe file of that content; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes) -> str:
        Path("mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return "mine.yaml"

    return write


def head(name: str) -> str:
    """The comment that a recipe opens with."""
    return "\n".join(line.removeprefix("#").strip() for line in recipe_text(name).partition("\n\n")[0].splitlines())


def test_loads_and_has_every_key_once_in_order(name: str) -> None:
    recipe = load_recipe(name)
    text = recipe_text(name)
    assert sorted(re.findall(r"^(\w+):", text, re.MULTILINE)) == sorted(KEYS)
    assert vars(recipe) == DEFAULTS | yaml.safe_load(recipe_text(name))


def test_head_names_command_data_hardware_time_and_expectation(name: str) -> None:
    header = head(name)
    assert recipe_text(name).startswith("# ")
    assert f"\ndensefeat train {name} train=" in header
    for part in ("\nData: ", "\nHardware: ", " Time: "):
        assert part in header
    assert re.search(r"^Expected (error|accuracy)", header, re.MULTILINE)
    own = {other for other in re.findall(r"(?:train|runs/|-m densefeat train) ?(\w+)", header) if other in recipe_names()}
    assert own == {name}


def commands(name: str) -> list[list[str]]:
    """The overrides of each line of the head that has any, the title's L and k left out."""
    lines = head(name).splitlines()[1:]
    return [found for line in lines if (found := re.findall(r"(?<![\w-])([a-z_]+=[^\s;,]+)", line))]


def test_what_the_head_says_can_be_overridden(name: str) -> None:
    assert commands(name)
    for overrides in commands(name):
        recipe = load_recipe(name, overrides)
        for override in overrides:
            key, _, value = override.partition("=")
            assert getattr(recipe, key) == yaml.safe_load(value)


def test_model_exists_and_fits_the_data(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model in VARIANTS
    assert recipe.image_size == timm.get_pretrained_cfg(recipe.model).input_size[-1]
    if "DelugeNet" in head(name).splitlines()[0]:
        assert recipe.proj_drop_rate == 0  # an argument of DenseNets only


@pytest.mark.parametrize("name", ["imagenet_densenet121_modern", "cifar10_fast", "tin200"])
def test_what_nobody_measured_says_so(name: str) -> None:
    assert re.search(r"Expected (error|accuracy): not measured", head(name))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("lr=1e-4", "lr", 1e-4),
        ("lr=1E+1", "lr", 10.0),
        ("lr=1.e-2", "lr", 0.01),
        ("weight_decay=0", "weight_decay", 0.0),
        ("epochs=2.5", "epochs", 2.5),
        ("proj_drop_rate=0.2", "proj_drop_rate", 0.2),
        ("milestones=[0.25, 5e-1]", "milestones", [0.25, 0.5]),
        ("milestones=[]", "milestones", []),
        ("ema=0.999", "ema", 0.999),
        ("clip_grad=", "clip_grad", None),
        ("decay_norm=no", "decay_norm", False),
        ("train=a=b.parquet", "train", "a=b.parquet"),
        ("data=cifar100", "data", "cifar100"),
        ("image_size={0: 16, 0.5: 32}", "image_size", {0.0: 16, 0.5: 32}),
        ("threads=2", "threads", 2),
        ("weights=published", "weights", "published"),
    ],
)
def test_override(override: str, key: str, value: object) -> None:
    recipe, before = load_recipe(NAME, [override]), load_recipe(NAME)
    assert getattr(recipe, key) == value
    assert type(getattr(recipe, key)) is type(value)
    assert replace(recipe, **{key: getattr(before, key)}) == before


def test_the_last_override_holds() -> None:
    assert load_recipe(NAME, ["seed=1", "lr=0.2", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "'lr': overrides are written key=value"),
        ("--lr 3", "'--lr 3': overrides are written key=value"),
        ("=3", "in '=3': unknown key '': the keys are model, memory_efficient, "),
        ("momentm=0.9", "in 'momentm=0.9': unknown key 'momentm': did you mean 'momentum'?"),
        ("lr=fast", "in 'lr=fast': lr 'fast': give a valid number"),
        ("lr=", "in 'lr=': lr None: give a valid number"),
        ("lr=true", "in 'lr=true': lr True: give a valid number"),
        ("lr='0.1'", "in \"lr='0.1'\": lr '0.1': give a valid number"),
        ("lr=2020-01-01", "in 'lr=2020-01-01': lr datetime.date(2020, 1, 1): give a valid number"),
        ("lr=2020-99-99", "'lr=2020-99-99': '2020-99-99' is not a value in YAML"),
        ("lr=!!int x", "'lr=!!int x': '!!int x' is not a value in YAML"),
        ("lr=[", "'lr=[': '[' is not a value in YAML"),
        ("lr=*other", "'lr=*other': '*other' is not a value in YAML"),
        ("lr=!!python/object/apply:os.getcwd []", "'!!python/object/apply:os.getcwd []' is not a value in YAML"),
        ("lr=.nan", "recipe: lr nan: give a finite number"),
        ("batch_size=64.0", "in 'batch_size=64.0': batch_size 64.0: give a valid integer"),
        ("batch_size=6e1", "in 'batch_size=6e1': batch_size 60.0: give a valid integer"),
        ("seed=null", "in 'seed=null': seed None: give a valid integer"),
        ("compile=1", "in 'compile=1': compile 1: give a valid boolean"),
        ("model=121", "in 'model=121': model 121: give a valid string"),
        ("model=yes", "in 'model=yes': model True: give a valid string"),
        ("label_column=3", "in 'label_column=3': label_column 3: give a valid string"),
        ("milestones=0.5", "in 'milestones=0.5': milestones 0.5: give a valid list"),
        ("milestones=[0.5, x]", "in 'milestones=[0.5, x]': milestones [0.5, 'x']: give a valid number"),
        ("proj_drop_rate=some", "in 'proj_drop_rate=some': proj_drop_rate 'some': give 'auto' or a valid number"),
        ("image_size=16.5", "image_size 16.5: give a valid dictionary or a valid integer"),
        ("image_size={0: big}", "image_size {0: 'big'}: give a valid integer"),
        ("data=mnist", "in 'data=mnist': data 'mnist': give 'cifar10', 'cifar100', 'svhn', 'tin200', 'imagenet' or 'images'"),
        ("augment=all", "augment 'all': give 'none', 'shift-mirror', 'cutout', 'crop-mirror', 'inception' or 'randaugment'"),
        ("batch_size=0", "recipe: batch_size 0: give a number above 0"),  # checked over what is overridden, too
    ],
)
def test_wrong_override(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        load_recipe(NAME, [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr: 0.1\nlr: 0.2", f"mine.yaml, line {LR_LINE + 1}: 'lr' is there twice"),
        ("leaning_rate: 0.1", f"mine.yaml, line {LR_LINE}: unknown key 'leaning_rate': "),
        ("lr: 0.1\nmilestone: [0.5]", f"mine.yaml, line {LR_LINE + 1}: unknown key 'milestone': did you mean 'milestones'?"),
        ("lr: 0.1\nzz: 1", f"mine.yaml, line {LR_LINE + 1}: unknown key 'zz': the keys are model, memory_efficient, "),
        ("lr: 0.1\n<<: {seed: 1}", f"mine.yaml, line {LR_LINE + 1}: unknown key '<<'"),
        ("lr: 0.1\n3: 1", f"mine.yaml, line {LR_LINE + 1}: unknown key '3'"),
        ("lr: much", f"mine.yaml, line {LR_LINE}: lr 'much': give a valid number"),
        ("lr:", f"mine.yaml, line {LR_LINE}: lr None: give a valid number"),
        ("lr: [0.1]", f"mine.yaml, line {LR_LINE}: lr [0.1]: give a valid number"),
        ("lr: 0.1: 2", f"recipe mine.yaml, line {LR_LINE}: not YAML: mapping values are not allowed here"),
        ("lr 0.1", f"recipe mine.yaml, line {LR_LINE + 1}: not YAML: could not find expected ':'"),
        ("\tlr: 0.1", f"recipe mine.yaml, line {LR_LINE}: not YAML: found character '\\t' that cannot start any token"),
        ("lr: *fast", f"recipe mine.yaml, line {LR_LINE}: not YAML: aliases are not read: write the value itself"),
        (f"lr: {'[' * 1000}", f"recipe mine.yaml, line {LR_LINE}: not YAML: lists and mappings in more than 20 levels"),
        (f"lr: [{'1,' * 1000}]", f"mine.yaml, line {LR_LINE}: lr [{'1, ' * 66}1…: give a valid number"),
        ("lr: 2020-99-99", f"recipe mine.yaml, line {LR_LINE}: not YAML: month must be in 1..12"),
        ("lr: !!python/name:os.getcwd", f"recipe mine.yaml, line {LR_LINE}: not YAML: could not determine a constructor"),
        ("lr: -1", "recipe: lr -1.0: give a number above 0"),
        ("", "recipe mine.yaml: lr missing; densefeat recipes show prints complete ones"),
    ],
)
def test_wrong_line(mine, line: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        load_recipe(mine(TEXT.replace("lr: 0.1", line)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "recipe mine.yaml: there are no keys in this file"),
        (b"# a comment\n", "recipe mine.yaml: there are no keys in this file"),
        (b"- lr\n- 0.1\n", "recipe mine.yaml: there are no keys in this file"),
        (b"0.1", "recipe mine.yaml: there are no keys in this file"),
        (b"\x89PNG\r\n\x1a\n", "recipe 'mine.yaml': not a text file in UTF-8"),
        (b"lr: 1\x00", "recipe mine.yaml: not YAML: unacceptable character #x0000: special characters are not allowed"),
        (b"seed: 0\n---\nlr: 1\n", "recipe mine.yaml, line 2: not YAML: but found another document"),
        (b"#" * (2**20 + 1), "recipe 'mine.yaml': 1,048,577 bytes are too many for a recipe"),
        (b"model: x\nlr: 0.1\n", "recipe mine.yaml: memory_efficient, train, label_column, "),
    ],
)
def test_wrong_file(mine, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        load_recipe(mine(content))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10_densenet_bc100_k1", "unknown recipe 'cifar10_densenet_bc100_k1': did you mean cifar10_densenet_bc100_k12, "),
        ("%%%", "unknown recipe '%%%': see: densefeat recipes (or the path of a .yaml file)"),
        ("", "unknown recipe '': see: densefeat recipes"),
        ("nowhere.yaml", "recipe 'nowhere.yaml': No such file or directory"),
        ("folder.yaml", "recipe 'folder.yaml': Is a directory"),
    ],
)
def test_wrong_name(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    with pytest.raises(UsageError, match=re.escape(message)):
        load_recipe(name)


@pytest.mark.parametrize("content", [TEXT, TEXT.replace("\n", "\r\n"), "\ufeff" + TEXT, TEXT.replace("0.0001", "1e-4")])
def test_a_file_of_ones_own(mine, content: str) -> None:
    assert load_recipe(mine(content)) == load_recipe(NAME)


def test_dumped_and_loaded_it_is_the_same(mine, name: str) -> None:
    recipe = load_recipe(name, ["lr=1e-5", "label_column='ärger: 1'", "seed=7"])
    text = dump_recipe(recipe)
    assert list(yaml.safe_load(text)) == [field.name for field in fields(Recipe)]
    assert load_recipe(mine(text)) == recipe


def test_without_pydantic_values_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_recipe(NAME)
    monkeypatch.setitem(sys.modules, "pydantic", None)  # importing it raises ImportError
    assert load_recipe(NAME) == expected
    assert load_recipe(NAME, ["model=5"]).model == 5
    with pytest.raises(UsageError, match="lr -1: give a number above 0"):
        load_recipe(NAME, ["lr=-1"])
