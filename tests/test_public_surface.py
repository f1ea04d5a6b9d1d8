import subprocess
import sys

import pytest

import peftkit


def test_every_name_is_there_and_listed_in_order():
    assert peftkit.__all__ == sorted(peftkit.__all__)
    assert set(peftkit.__all__) == set(peftkit._HOME)
    for name in peftkit.__all__:
        assert callable(getattr(peftkit, name)), name


def test_no_submodule_takes_the_place_of_a_public_name():
    code = (
        "import peftkit, pkgutil, importlib\n"
        "for module in pkgutil.walk_packages(peftkit.__path__, 'peftkit.'):\n"
        "    importlib.import_module(module.name)\n"
        "print([n for n in peftkit.__all__ if not callable(getattr(peftkit, n))])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_importing_peftkit_imports_nothing_heavy_and_says_nothing():
    code = (
        "import peftkit, sys\n"
        "heavy = ('torch', 'transformers', 'peft', 'pydantic')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


@pytest.mark.parametrize("name", ["load_backbone", "LoraConfig", "attach"])
def test_the_first_use_of_a_public_name_says_nothing_and_leaves_the_loggers_as_they_were(name):
    code = (
        "import logging, peftkit\n"
        f"peftkit.{name}\n"
        "for name in ('bitsandbytes.backends.cpu.ops', 'bitsandbytes.autograd._functions'):\n"
        "    logger = logging.getLogger(name)\n"
        "    print(logger.level, logger.filters, logger.handlers)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["0 [] []"] * 2
    assert run.stderr == ""


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'atach'"):
        peftkit.atach  # noqa: B018


def test_peft_knows_every_method_once_peft_and_then_peftkit_are_imported():
    code = (
        "import peft, peftkit\n"
        "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known\n"
        "print({'LORA', 'ADALORA', 'BOTTLENECK', 'PREFIX'} <= set(known))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
