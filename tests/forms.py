"""Random heads, and what the tests of the bilinear form compare with: definitions on d × d matrices, descents."""

from collections.abc import Callable

import torch
from torch import Tensor

from querykey.bilinear import BilinearForm, SharedHead


def form_of_sample(q: Tensor, k: Tensor) -> BilinearForm:
    """Of (…, tokens, head_dim) each, taken before any rotation; as many heads of keys as of queries."""
    both = torch.cat([q, k], -1)
    mean = both.mean(-2)
    centred = both - mean.unsqueeze(-2)
    return BilinearForm.from_covariance(centred.mT @ centred / q.shape[-2], mean)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-2, keepdim=True)


def product(head: SharedHead, A: Tensor, B: Tensor) -> Tensor:
    """M̂ = W C Wᵀ."""
    W = head.mixed(A, B)
    return W @ head.core @ W.mT


def descend(loss: Callable[..., Tensor], *starts: Tensor, steps: int = 600) -> Tensor:
    """The least loss that L-BFGS finds from the given starting values."""
    values = [start.clone().contiguous().requires_grad_(True) for start in starts]
    optimizer = torch.optim.LBFGS(
        values,
        max_iter=steps,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(*values)
        value.backward()
        return value

    optimizer.step(closure)
    return loss(*values).detach()


def lost(M: Tensor, approximation: Tensor) -> Tensor:
    """Energy of M that an approximation loses, of 1."""
    return (M - approximation).square().sum() / M.square().sum()


def range_of(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the column space."""
    U, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, s > 1e-9 * s[0]]


def excess(norms: Tensor) -> Tensor:
    threshold = norms.mean() + 2 * norms.std()
    return (norms - threshold)[norms > threshold].sum()


def dense(A: Tensor, B: Tensor) -> dict[str, Tensor]:
    """Every measure of one head, straight from its definition on the dim × dim matrix."""
    M, k = A @ B.T, A.shape[1]
    eigenvalues, singular = torch.linalg.eigvalsh((M + M.T) / 2), torch.linalg.svdvals(M)
    energy, p = (M * M).sum(), singular / singular.sum()
    rows, columns = excess(M.norm(dim=1)), excess(M.norm(dim=0))
    U, V = range_of(A), range_of(B)
    kept = eigenvalues[eigenvalues.abs().argsort(descending=True)][:k]
    return {
        "norm": energy.sqrt(),
        "symmetry": (M @ M).trace() / energy,
        "tied_share": eigenvalues[eigenvalues > 0].square().sum() / energy,
        "negative_share": eigenvalues[eigenvalues < 0].square().sum() / energy,
        "signed_share": kept.square().sum() / energy,
        "positive": (eigenvalues > 1e-9 * singular[0]).sum(),
        "negative": (eigenvalues < -1e-9 * singular[0]).sum(),
        "effective_rank": (-(p * p.clamp(min=1e-300).log()).sum()).exp(),
        "stable_rank": energy / singular[0] ** 2,
        "distance": 1 - M.trace() / singular.sum(),
        "overlap": torch.linalg.svdvals(U.T @ V).square().sum() / min(U.shape[1], V.shape[1]),
        "directionality": (rows - columns) / (rows + columns) if rows + columns > 0 else torch.tensor(0.0),
    }


def close(found: Tensor, expected: Tensor, *, rtol: float, atol: float, name: str = "") -> None:
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}"
    )


def pair(size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    both = normal(2, *size, seed=seed)
    return both[0], both[1]
