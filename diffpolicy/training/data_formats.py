"""The data set formats that training can read."""

from collections.abc import Callable, Mapping

from diffpolicy.data.demonstrations import ACTION, Demonstrations, load_demonstrations
from diffpolicy.data.locate import find_data_set
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.data.source import DataSource
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.formats.table import READERS
from diffpolicy.system.schema import check_settings
from diffpolicy.system.tables import lookup
from diffpolicy.system.time_limits import LimitsConfig
from diffpolicy.training.control_rate import warn_of_other_rate
from diffpolicy.training.mixture import check_weights, joined_sets
from diffpolicy.training.rendering import with_rendered
from diffpolicy.training.settings import DataConfig, image_formats

FORMATS: Mapping[str, Callable[[str], DataSource]] = {**READERS, "zarr": ReplayBuffer.open}


def load_data(data: DataConfig, env: EnvConfig | None = None, limit_s: float = LimitsConfig.data_s) -> Demonstrations:
    """Find or download the data sets and load their demonstrations; `env` draws what `data.render` names,
    in processes that may take `limit_s` for some hundred frames. Warns if a data set has another rate than the env.

    Raises:
        ValueError: a setting or the data set is invalid.
        OSError, ChildProcessError: as in `with_rendered`.
        FileNotFoundError, ConnectionError: as in `find_data_set`.
    """
    if not isinstance(data.observations, dict) or not all(isinstance(key, str) for key in data.observations):
        raise ValueError(
            f"data: observations is {data.observations!r}, expected e.g. {{state: [state]}}: key to arrays"
        )
    if ACTION in data.observations:
        raise ValueError(f"data: observations has the key {ACTION!r}, which names the actions; choose another name")
    paths = [data.path] if isinstance(data.path, str) else data.path
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"data: path is {data.path!r}, expected a path or a list of paths")
    if len(set(paths)) < len(paths):
        raise ValueError(f"data: path names a data set twice: {paths}; use data.weights to draw from it more often")
    check_weights(data.weights, len(paths))
    open_source = lookup(FORMATS, "data.format", data.format)
    check_settings(data, "data")
    taught = list(data.auxiliary_weights())

    def opened(location: str) -> DataSource:
        source = open_source(location)
        warn_of_other_rate(source, env)
        return with_rendered(source, data, env, limit_s) if data.render else source

    asked = data.observations, data.action, data.stream, opened, taught, image_formats(data), data.episodes
    return joined_sets({path: load_demonstrations(find_data_set(path), *asked) for path in paths})
