"""Values of the model's volume."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scripts.chart_types import Env, ObjectName, Objects, Values, each


class ModelFetch(Values):
    """An init container that fills the volume."""

    image: str = ""
    """Image with the tool, such as a bucket's command line; empty: none."""
    command: list[str] = []
    """Its command. The volume is at `model.mountPath`, writable."""
    args: list[str] = []
    """Arguments of the command."""
    env_from_secret: ObjectName = ""
    """Secret with its credentials, as environment."""
    env: Env | None = None
    """Further environment, in the forms of the top level's `env`, which it has, too."""
    env_from: Annotated[Objects, each("core.v1.EnvFromSource")] = []
    """Further Secrets and ConfigMaps as environment."""


class ModelVolume(Values):
    """Where the weights come from. `config.model.path` is below `mountPath`."""

    mount_path: str = Field("/models", pattern="^/.+")
    """Folder in all containers."""
    sub_path: str = Field("", pattern=r"^([^/].*)?$")
    """Folder of the volume that is mounted; empty: all of it."""
    kind: Literal["pvc", "hostPath", "image", "emptyDir"] = "pvc"
    """`pvc`: a claim all nodes can read. `hostPath`: a folder on each node. `image`: an OCI artifact (Kubernetes
    1.33 and up). `emptyDir`: filled by `fetch` at each start."""
    claim: ObjectName = ""
    """Name of the PersistentVolumeClaim."""
    host_path: str = Field("", pattern="^(/.*)?$")
    """Folder on the nodes."""
    image: str = ""
    """OCI reference."""
    size_gib: float = Field(20, gt=0)
    """Limit of the emptyDir, GiB."""
    fetch: ModelFetch = ModelFetch()
    """Init container; with kind `emptyDir`, or `pvc` that allows writing."""
