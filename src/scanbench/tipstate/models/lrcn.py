"""`lrcn`: a convolutional network on rolling windows of scan lines, read by an LSTM.

After Gordon et al. 2020, "Embedding human heuristics in machine-learning-enabled probe microscopy"
(arXiv 1907.13401). A window of W lines goes through a small VGG; the LSTM sees the windows in the
order in which they were measured and answers after each.

Neighbouring windows share most of their lines. The convolutions are padded along the fast axis
only, and nothing in the network looks beyond its own rows, so the features of a window are a slice
of the features of the whole scan, as long as every window starts on the grid of the pooling. The
scan then goes through the network once, instead of once for every window that a line stands in, at
the same result.

Shape suffixes: B batch, N windows of all scans of a batch, L lines, P pixels, W lines of a window,
R rows of features, Q columns of features, F features, T windows of a scan (= answers), C classes,
H width of the LSTM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL = 3

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hyper-parameters of `lrcn`.

    Parameters
    ----------
    window
        Lines W of a window.
    stride
        Lines from the start of one window to the start of the next. Multiples of the product of
        `slow_pooling` are several times faster than others, at the same result.
    channels
        Channels of the 3×3 convolutions.
    slow_pooling
        Factor of the max-pooling along the slow axis after each convolution; along the fast axis it
        is 2 after each. The default leaves rows to a window of 10 lines.
    hidden
        Width of the LSTM.
    dropout
        Rate before and after the LSTM.
    """

    window: int = 20
    stride: int = 4
    channels: tuple[int, ...] = (32, 64, 128)
    slow_pooling: tuple[int, ...] = (1, 2, 1)
    hidden: int = 256
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name, value in {
            "window": self.window,
            "stride": self.stride,
            "hidden": self.hidden,
            "channels": min(self.channels, default=0),
            "slow_pooling": min(self.slow_pooling, default=0),
        }.items():
            if value < 1:
                raise ValueError(f"{name}: {value} is not possible, give at least 1")
        if len(self.channels) != len(self.slow_pooling):
            raise ValueError(
                f"slow_pooling: {len(self.slow_pooling)} factors for {len(self.channels)} channels,"
                " give one for each"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not possible, give 0 to below 1")
        if self.window_rows < 1:
            raise ValueError(
                f"window: {self.window} lines leave no row after the convolutions and slow_pooling"
                f" {self.slow_pooling}, give more lines or less pooling"
            )

    @property
    def window_rows(self) -> int:
        """Rows of features that a window has after the last convolution."""
        rows = self.window
        for factor in self.slow_pooling:
            rows = (rows - KERNEL + 1) // factor
        return rows

    @property
    def shares_lines(self) -> bool:
        """Whether the features of windows can be cut from the features of the whole scan.

        They can if windows start on the grid of the pooling, and it pays if windows overlap.
        """
        return self.stride % math.prod(self.slow_pooling) == 0 and self.stride < self.window


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position, on [N, F, R, Q].

    Batch normalisation would take its statistics over other lines, and group normalisation over
    lines that come later in the scan; this one sees nothing but its own position.
    """

    def forward(self, x_NFRQ: Tensor) -> Tensor:
        """Return the normalised features, [N, F, R, Q]."""
        return super().forward(x_NFRQ.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convolutions(options: Options) -> nn.Sequential:
    """Return the VGG-like network from lines [N, 1, L, P] to features [N, F, R, Q].

    Without padding along the slow axis: a row of features depends on the lines under it alone.
    """
    layers: list[nn.Module] = []
    before = 1
    for after, slow_factor in zip(options.channels, options.slow_pooling, strict=True):
        layers += [
            nn.Conv2d(before, after, KERNEL, padding=(0, KERNEL // 2)),
            nn.MaxPool2d((slow_factor, 2)),
            ChannelNorm(after),
            nn.ReLU(),
        ]
        before = after
    return nn.Sequential(*layers)


def as_images(x_NLP: Tensor) -> Tensor:
    """Return lines as images of one channel, [N, 1, L, P], channels last in memory.

    A channel axis at the end, viewed as the second: that tells the convolutions to keep the format.
    """
    return x_NLP[..., None].permute(0, 3, 1, 2)


def columns_to_features(x_BFTQ: Tensor) -> Tensor:
    """Return mean and maximum over the fast axis as the features of each window, [B, T, 2·F]."""
    return torch.cat([x_BFTQ.mean(-1), x_BFTQ.amax(-1)], dim=1).transpose(1, 2)


def window_features_plain(cnn: nn.Module, x_BLP: Tensor, options: Options) -> Tensor:
    """Return the features of each window [B, T, 2·F]: the definition.

    Every window is cut out and goes through the network on its own.
    """
    x_BTPW = x_BLP.unfold(1, options.window, options.stride)
    x_NWP = x_BTPW.transpose(2, 3).flatten(0, 1)
    feature_NFRQ = cnn(as_images(x_NWP))
    feature_BFTQ = feature_NFRQ.mean(2).unflatten(0, x_BTPW.shape[:2]).transpose(1, 2)
    return columns_to_features(feature_BFTQ)


def window_features_shared(cnn: nn.Module, x_BLP: Tensor, options: Options) -> Tensor:
    """Return the same as `window_features_plain`, passing the scan through the network once.

    The mean over the rows of each window is an average pooling of the scan's rows.
    """
    assert options.shares_lines, "windows must start on the grid of the pooling"
    feature_BFRQ = cnn(as_images(x_BLP))
    row_stride = options.stride // math.prod(options.slow_pooling)
    feature_BFTQ = F.avg_pool2d(feature_BFRQ, (options.window_rows, 1), (row_stride, 1))
    # A window's last lines may fill no row: rows can suffice for a window that is not measured yet.
    windows = (x_BLP.shape[1] - options.window) // options.stride + 1
    return columns_to_features(feature_BFTQ[:, :, :windows])


class Model(nn.Module):
    """Classify a scan after each of its windows, from the windows so far.

    Parameters
    ----------
    options
        Hyper-parameters.
    lines, pixels
        Shape of a scan.
    classes
        Number of classes.

    Raises
    ------
    ValueError
        If a window is longer than the scan, or a line too short for the pooling.
    """

    def __init__(self, options: Options, *, lines: int, pixels: int, classes: int) -> None:
        super().__init__()
        if options.window > lines:
            raise ValueError(
                f"window: {options.window} lines do not fit a scan of {lines} lines, give fewer"
            )
        depth = len(options.channels)
        if pixels < 2**depth:
            raise ValueError(
                f"channels: {depth} poolings leave nothing of {pixels} pixels, give fewer channels"
            )
        self.options = options
        self.lines = lines
        self.pixels = pixels
        self.cnn = convolutions(options)
        self.dropout = nn.Dropout(options.dropout)
        self.lstm = nn.LSTM(2 * options.channels[-1], options.hidden, batch_first=True)
        self.head = nn.Linear(options.hidden, classes)

    answers_at_end = False

    def answer_lines(self) -> list[int]:
        """Return the number of lines seen at each answer: the last line of each window."""
        return list(range(self.options.window, self.lines + 1, self.options.stride))

    def window_features(self, x_BLP: Tensor) -> Tensor:
        """Return the features of each window, [B, T, 2·F], by the faster way that is exact."""
        if self.options.shares_lines:
            return window_features_shared(self.cnn, x_BLP, self.options)
        return window_features_plain(self.cnn, x_BLP, self.options)

    def forward(self, x_BLP: Tensor, n_lines_B: Tensor) -> Tensor:
        """Return logits [B, T, C], one answer for each window from the windows up to it.

        `n_lines_B` is not needed: windows with lines that were not measured come last, and the LSTM
        reads forward only.
        """
        feature_BTF = self.dropout(self.window_features(x_BLP))
        state_BTH, _ = self.lstm(feature_BTF)
        return self.head(self.dropout(state_BTH)).float()

    def stages(self) -> Iterator[tuple[nn.Conv2d, ChannelNorm, int]]:
        """Yield each convolution, the norm after it, and its pooling along the slow axis."""
        modules = list(self.cnn)
        for depth, factor in enumerate(self.options.slow_pooling):
            convolution, norm = modules[4 * depth], modules[4 * depth + 2]
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, ChannelNorm)
            yield convolution, norm, factor

    def initial_state(self) -> State:
        """Return what `step` needs before the first line.

        Returns
        -------
        dict
            `seen`, int64 [1]: lines so far. Rows of features that later ones need, the newest
            last: `convolved_<k>` [F, 2, Q], the inputs of a convolution, and `pooled_<k>`
            [F, factor − 1, Q], its outputs that wait to be pooled; `window` [F, R, Q], the rows of
            the newest window. `hidden` and `cell` [1, H] of the LSTM. Where windows
            do not start on the grid of the pooling, `window` [W − 1, P] holds lines instead.
        """
        options = self.options
        state = {"seen": torch.zeros(1, dtype=torch.int64)}
        if options.stride % math.prod(options.slow_pooling):
            state["window"] = torch.zeros(options.window - 1, self.pixels)
        else:
            columns, features = self.pixels, 1
            for k, (convolution, _, factor) in enumerate(self.stages()):
                state[f"convolved_{k}"] = torch.zeros(features, KERNEL - 1, columns)
                columns, features = columns // 2, convolution.out_channels
                state[f"pooled_{k}"] = torch.zeros(features, factor - 1, columns)
            state["window"] = torch.zeros(features, options.window_rows, columns)
        state["hidden"] = torch.zeros(1, options.hidden)
        state["cell"] = torch.zeros(1, options.hidden)
        return state

    def step(self, line_P: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, State]:
        """Answer after one more line: what `forward` in evaluation says there.

        Each line adds one row to each layer, so the work is the same at every line. All shapes are
        fixed and nothing branches, so that a step can be exported: a row that is not due by the
        pooling, or an answer that is not due by the stride, is computed and left out of the state.

        Parameters
        ----------
        line_P
            The next line, normalised.
        state
            From `initial_state` or the step before; not changed.

        Returns
        -------
        logits_C : Tensor
        answered : Tensor
            Whether a window ends here, so that the logits are an answer, bool [1].
        state : dict
        """
        options, seen = self.options, state["seen"] + 1
        after = {"seen": seen}
        if options.stride % math.prod(options.slow_pooling):
            lines_WP = torch.cat([state["window"], line_P[None]])
            after["window"] = lines_WP[1:]
            feature_1F = window_features_plain(self.cnn, lines_WP[None], options)[0]
        else:
            feature_1F = self._newest_window(line_P, state, after)
        answered = (seen >= options.window) & ((seen - options.window) % options.stride == 0)
        read_1H, (hidden_1H, cell_1H) = self.lstm(feature_1F, (state["hidden"], state["cell"]))
        after["hidden"] = torch.where(answered, hidden_1H, state["hidden"])
        after["cell"] = torch.where(answered, cell_1H, state["cell"])
        return self.head(read_1H).float()[0], answered, after

    def _newest_window(self, line_P: Tensor, state: Mapping[str, Tensor], after: State) -> Tensor:
        """Return the features of the window that ends at this line, [1, 2·F], and fill `after`.

        At a line where no window ends, they mean nothing.
        """
        seen = state["seen"] + 1
        # Row n of a layer is known when `needed` + n · `period` lines have been seen.
        needed, period = 1, 1
        due = torch.ones_like(seen, dtype=torch.bool)
        row_FRQ = line_P[None, None]
        for k, (convolution, norm, factor) in enumerate(self.stages()):
            input_FRQ = torch.cat([state[f"convolved_{k}"], row_FRQ], dim=1)
            after[f"convolved_{k}"] = torch.where(due, input_FRQ[:, 1:], state[f"convolved_{k}"])
            row_FRQ = F.max_pool2d(convolution(input_FRQ[None]), (1, 2))[0]
            group_FRQ = torch.cat([state[f"pooled_{k}"], row_FRQ], dim=1)
            after[f"pooled_{k}"] = torch.where(due, group_FRQ[:, 1:], state[f"pooled_{k}"])
            row_FRQ = F.relu(norm(group_FRQ.amax(1, keepdim=True)[None]))[0]
            needed += (KERNEL - 1 + factor - 1) * period
            period *= factor
            due = (seen - needed) % period == 0
        window_FRQ = torch.cat([state["window"][:, 1:], row_FRQ], dim=1)
        after["window"] = torch.where(due, window_FRQ, state["window"])
        return columns_to_features(after["window"].mean(1)[None, :, None])[0]
