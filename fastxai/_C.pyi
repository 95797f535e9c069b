from collections.abc import Sequence

has_cuda: bool

def activation_names() -> list[str]: ...
def parallel_runtime() -> str: ...
def cpu_pool_tensor(
    shape: Sequence[int], strides: Sequence[int], bytes: int, code: int, bits: int, /
) -> object | None: ...
def cpu_pool_unused() -> int: ...
def cpu_pool_clear() -> None: ...
def cpu_activation_push(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    channels: int,
    inner: int,
    a: int,
    bias: int,
    y: int,
    kept: int,
    threads: int,
    /,
) -> None: ...
def cpu_activation_pull(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    kept: int,
    a_v: int,
    nu: int,
    mu: int,
    threads: int,
    /,
) -> None: ...
def cpu_activation_pull_primal(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    kept: int,
    a_v: int,
    nu_v: int,
    nu_0: int,
    mu: int,
    threads: int,
    /,
) -> None: ...
def cpu_attack_step_adam(
    dtype: int,
    geometry: Sequence[int],
    adam: Sequence[float],
    x: int,
    gradient: int,
    m: int,
    v: int,
    low: int,
    high: int,
    frozen: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def cpu_attack_step_l2(
    dtype: int,
    geometry: Sequence[int],
    alpha: float,
    eps: float,
    x: int,
    gradient: int,
    origin: int,
    low: int,
    high: int,
    frozen: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def cpu_attack_step_sign(
    dtype: int,
    geometry: Sequence[int],
    alpha: float,
    eps: float,
    x: int,
    gradient: int,
    origin: int,
    low: int,
    high: int,
    frozen: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def cpu_interpolate_push(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    points: int,
    channels: int,
    inner: int,
    a: int,
    bias: int,
    t: int,
    y: int,
    kept: int,
    threads: int,
    /,
) -> None: ...
def cpu_interpolate_tangent(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    points: int,
    kept: int,
    a_v: int,
    y_v: int,
    threads: int,
    /,
) -> None: ...
def cpu_interpolate_reduce(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    points: int,
    kept: int,
    nu: int,
    mu: int,
    threads: int,
    /,
) -> None: ...
def cpu_interpolate_reduce_primal(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    points: int,
    kept: int,
    a_v: int,
    nu_v: int,
    nu_0: int,
    t: int,
    m: int,
    threads: int,
    /,
) -> None: ...
def cpu_kendall(dtype: int, samples: int, size: int, a: int, b: int, counts: int, threads: int, /) -> None: ...
def cpu_max_pool_push(
    dtype: int,
    components: int,
    rows: int,
    channels: int,
    geometry: Sequence[int],
    channels_last: bool,
    find: bool,
    x: int,
    y: int,
    index: int,
    threads: int,
    /,
) -> None: ...
def cpu_max_pool_pull(
    dtype: int,
    components: int,
    rows: int,
    channels: int,
    geometry: Sequence[int],
    channels_last: bool,
    nu: int,
    index: int,
    mu: int,
    threads: int,
    /,
) -> None: ...
def cpu_mixed_push(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    kept: int,
    a_v: int,
    a: int,
    y: int,
    threads: int,
    /,
) -> None: ...
def cpu_mixed_pull(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    kept: int,
    a_v: int,
    a: int,
    nu: int,
    bar: int,
    mu: int,
    threads: int,
    /,
) -> None: ...
def cpu_proportional_share(
    epsilon: float,
    kappa: float,
    sign: int,
    alone: bool,
    dtype: int,
    elements: int,
    r: int,
    z: int,
    y: int,
    shares: int,
    threads: int,
    /,
) -> None: ...
def cpu_proportional_adjoint(
    epsilon: float,
    kappa: float,
    sign: int,
    alone: bool,
    dtype: int,
    elements: int,
    d: int,
    z: int,
    shares: int,
    y: int,
    t: int,
    dz: int,
    threads: int,
    /,
) -> None: ...
def cpu_linear_apply(
    sizes: Sequence[int], x: int, weight: int, bias: int, y: int, registers: int, threads: int
) -> None: ...
def cpu_linear_transpose(sizes: Sequence[int], nu: int, weight: int, mu: int, registers: int, threads: int) -> None: ...
def cpu_linear_weight_grad(sizes: Sequence[int], nu: int, x: int, grad: int, registers: int, threads: int) -> None: ...
def cpu_thin_conv_apply(geometry: Sequence[int], x: int, weight: int, bias: int, y: int, threads: int) -> None: ...
def cpu_thin_conv_transpose(geometry: Sequence[int], nu: int, weight: int, mu: int, threads: int) -> None: ...
def cpu_winograd_conv(
    geometry: Sequence[int], x: int, u: int, bias: int, y: int, registers: int, threads: int
) -> None: ...
def cpu_winograd_refine(
    geometry: Sequence[int], least: int, of: int, z: int, x: int, weight: int, bias: int, y: int, threads: int
) -> None: ...
def cpu_winograd_weight_grad(
    geometry: Sequence[int], x: int, nu: int, du: int, registers: int, pieces: int
) -> None: ...
def cpu_vector_registers() -> int: ...
def cuda_activation_push(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    channels: int,
    inner: int,
    a: int,
    bias: int,
    y: int,
    kept: int,
    stream: int,
    /,
) -> None: ...
def cuda_activation_pull(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    kept: int,
    a_v: int,
    nu: int,
    mu: int,
    stream: int,
    /,
) -> None: ...
def cuda_activation_pull_primal(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    kept: int,
    a_v: int,
    nu_v: int,
    nu_0: int,
    mu: int,
    stream: int,
    /,
) -> None: ...
def cuda_mixed_push(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    kept: int,
    a_v: int,
    a: int,
    y: int,
    stream: int,
    /,
) -> None: ...
def cuda_mixed_pull(
    code: int,
    second: int,
    beta: float,
    alpha: float,
    dtype: int,
    elements: int,
    directions: int,
    kept: int,
    a_v: int,
    a: int,
    nu: int,
    bar: int,
    mu: int,
    stream: int,
    /,
) -> None: ...
