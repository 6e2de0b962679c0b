"""The data set formats that training can read."""

from collections.abc import Callable, Mapping

from diffpolicy.data.demonstrations import Demonstrations, load_demonstrations
from diffpolicy.data.locate import find_data_set
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.data.source import DataSource
from diffpolicy.formats.table import READERS
from diffpolicy.system.tables import lookup
from diffpolicy.training.mixture import check_weights, joined_sets
from diffpolicy.training.settings import DataConfig

FORMATS: Mapping[str, Callable[[str], DataSource]] = {**READERS, "zarr": ReplayBuffer.open}


def load_data(data: DataConfig) -> Demonstrations:
    """Find or download the data sets and load their demonstrations.

    Raises:
        ValueError: a setting or the data set is invalid.
        FileNotFoundError, ConnectionError: as in `find_data_set`.
    """
    if not isinstance(data.observations, dict) or not all(isinstance(key, str) for key in data.observations):
        raise ValueError(
            f"data: observations is {data.observations!r}, expected e.g. {{state: [state]}}: key to arrays"
        )
    if data.workers < 0:
        raise ValueError(f"data: workers {data.workers} must be at least 0")
    paths = [data.path] if isinstance(data.path, str) else data.path
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"data: path is {data.path!r}, expected a path or a list of paths")
    if len(set(paths)) < len(paths):
        raise ValueError(f"data: path names a data set twice: {paths}; use data.weights to draw from it more often")
    check_weights(data.weights, len(paths))
    open_source = lookup(FORMATS, "data.format", data.format)
    asked = data.observations, data.action, data.stream, open_source
    return joined_sets({path: load_demonstrations(find_data_set(path), *asked) for path in paths})
