"""Modules and names under which earlier documentation offered what rooms offer now."""

import importlib
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

_NEW_NAMES = {
    "densefeat.heads.kinds.make_head": "densefeat.heads.make_head",
    "densefeat.heads.probe.probe": "densefeat.probing.probe",
    "densefeat.heads.probe.Probed": "densefeat.probing.Probed",
    "densefeat.heads.probe_file.load_probe": "densefeat.probing.load_probe",
    "densefeat.heads.probe_file.Probe": "densefeat.probing.Probe",
    "densefeat.nets.catalogue.list_networks": "densefeat.loading.list_networks",
    "densefeat.nets.catalogue.Network": "densefeat.loading.Network",
    "densefeat.report.map.write_map": "densefeat.map.write_map",
    "densefeat.report.map.Mapped": "densefeat.map.MapResult",
    "densefeat.report.receptive.Field": "densefeat.report.Field",
    "densefeat.training.evaluate.evaluate": "densefeat.evaluation.evaluate",
    "densefeat.training.evaluate.Evaluation": "densefeat.evaluation.Evaluation",
    "densefeat.training.parallel_probe.probe_images": "densefeat.sgd_probe.probe_images",
    "densefeat.training.predict.predict": "densefeat.evaluation.predict",
    "densefeat.training.predict.Predicted": "densefeat.evaluation.Predicted",
}
_OLD_MODULES = {name.rpartition(".")[0] for name in _NEW_NAMES}


class MovedModules(MetaPathFinder):
    """A finder of the old modules; they load what they offer when it is first used."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == "densefeat.probe":  # a function has that name now, which a module would replace
            raise ModuleNotFoundError(f"no module {fullname!r}: import from densefeat or densefeat.probing", name=fullname)
        return spec_from_loader(fullname, _MovedModule()) if fullname in _OLD_MODULES else None


class _MovedModule(Loader):
    def exec_module(self, module: ModuleType) -> None:
        def get_moved(name: str) -> Any:
            room, _, new_name = _NEW_NAMES.get(f"{module.__name__}.{name}", "").rpartition(".")
            if not room:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            return getattr(importlib.import_module(room), new_name)

        module.__getattr__ = get_moved  # type: ignore[method-assign]
