from collections.abc import Sequence

has_cuda: bool

def activation_names() -> list[str]: ...
def parallel_runtime() -> str: ...
def cpu_activation_push(
    code: int, second: int, beta: float, alpha: float, dtype: int, elements: int, directions: int, channels: int,
    inner: int, a: int, bias: int, y: int, kept: int, threads: int, /,
) -> None: ...
def cpu_activation_pull(
    code: int, second: int, beta: float, alpha: float, dtype: int, elements: int, directions: int, kept: int, a_v: int,
    nu: int, mu: int, threads: int, /,
) -> None: ...
def cpu_activation_pull_primal(
    code: int, second: int, beta: float, alpha: float, dtype: int, elements: int, directions: int, kept: int, a_v: int,
    nu_v: int, nu_0: int, mu: int, threads: int, /,
) -> None: ...
def cpu_max_pool_push(
    dtype: int, components: int, rows: int, channels: int, geometry: Sequence[int], channels_last: bool, find: bool,
    x: int, y: int, index: int, threads: int, /,
) -> None: ...
def cpu_max_pool_pull(
    dtype: int, components: int, rows: int, channels: int, geometry: Sequence[int], channels_last: bool, nu: int,
    index: int, mu: int, threads: int, /,
) -> None: ...
def cuda_activation_push(
    code: int, second: int, beta: float, alpha: float, dtype: int, elements: int, directions: int, channels: int,
    inner: int, a: int, bias: int, y: int, kept: int, stream: int, /,
) -> None: ...
def cuda_activation_pull(
    code: int, second: int, beta: float, alpha: float, dtype: int, elements: int, directions: int, kept: int, a_v: int,
    nu: int, mu: int, stream: int, /,
) -> None: ...
def cuda_activation_pull_primal(
    code: int, second: int, beta: float, alpha: float, dtype: int, elements: int, directions: int, kept: int, a_v: int,
    nu_v: int, nu_0: int, mu: int, stream: int, /,
) -> None: ...
