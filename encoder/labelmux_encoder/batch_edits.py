"""The edits of one batch in plain torch: laid out over its packed tokens, applied per layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from labelmux_encoder.attention import PositionTables
from labelmux_encoder.batch import unpack
from labelmux_encoder.edits import (
    POSITION_SITES,
    Bottleneck,
    Edit,
    LowRank,
    Placed,
    Prefix,
    Scale,
    Shift,
    Site,
    SpecialTokenShift,
)

Kind = TypeVar("Kind", SpecialTokenShift, Prefix, Bottleneck)


class BatchEdits:
    """The edits of one batch, laid out over its packed tokens."""

    def __init__(
        self,
        placed: Sequence[Placed],
        lengths: Sequence[int],
        special: Sequence[Sequence[int]],
        query_scale: float,
        device: torch.device,
    ) -> None:
        """A row may carry several edits, but one ``Prefix`` at most.

        Args:
            placed: the edits.
            lengths: tokens of each row.
            special: places of each row's special tokens in the row; where an edit shifts them.
            query_scale: what the pass folds into queries.
            device: where the pass runs.
        """
        self.query_scale = query_scale
        self.carried = [
            (edit, _Carriers(entries, lengths, special, device)) for edit, entries in placed
        ]
        #: Places in ``carried`` of what each row's attention reads: prefix, position tables. [B]
        self.attention_of_row: list[tuple[int, ...]] = [()] * len(lengths)
        for place, (edit, carriers) in enumerate(self.carried):
            if isinstance(edit, Prefix) or getattr(edit, "site", None) in POSITION_SITES:
                for row in carriers.rows:
                    self.attention_of_row[row] += (place,)

    def layer(self, index: int) -> LayerEdits:
        """The edits at one layer."""
        return LayerEdits(self, index)


class LayerEdits:
    """The edits of one batch at one layer. Gates read what ``enter`` gives."""

    def __init__(self, batch: BatchEdits, index: int) -> None:
        self._batch = batch
        self._index = index
        self._gates: dict[int, Tensor] = {}

    def enter(self, hidden: Tensor) -> Tensor:
        """A layer's input, special tokens shifted. [N, H]"""
        for place, shift, carriers in self._of(SpecialTokenShift):
            self._read_gate(place, shift, carriers, hidden)
            hidden = self._shift_special(hidden, place, shift, carriers)
        for place, (edit, carriers) in enumerate(self._batch.carried):
            if not isinstance(edit, SpecialTokenShift | Bottleneck):
                self._read_gate(place, edit, carriers, hidden)
        return hidden

    def at_qkv(self, qkv: Tensor, hidden: Tensor) -> Tensor:
        """Queries, keys and values of a layer whose input is ``hidden``. [N, 3H]"""
        if not any(self._reaches(site) for site in ("query", "key", "value")):
            return qkv
        query, key, value = qkv.chunk(3, -1)
        scale = self._batch.query_scale
        return torch.cat(
            [
                self.at("query", query, hidden, scale),
                self.at("key", key, hidden),
                self.at("value", value, hidden),
            ],
            -1,
        )

    def at(
        self, site: Site, found: Tensor, source: Tensor | None = None, scale: float = 1
    ) -> Tensor:
        """What a site gave, changed. [N, width]

        Args:
            site: where.
            found: what the frozen layer gives there.
            source: what the site's linear map read, if it is one.
            scale: what the pass folded into ``found``.
        """
        for place, (edit, carriers) in enumerate(self._batch.carried):
            if isinstance(edit, LowRank | Shift | Scale) and edit.site == site and carriers.rows:
                read = None if source is None else carriers.take(source)
                own = self._changed(place, edit, carriers, carriers.take(found), read, scale)
                found = carriers.put(found, own)
        return found

    def prefix(self, rows: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Keys and values of rows that share a prefix edit, or have none. Two of [rows, P, H]"""
        for place, edit, own in self._attention_of(rows):
            if isinstance(edit, Prefix):
                keys, values = (x[own.entries, self._index] for x in (edit.keys, edit.values))
                return self._gated(place, own, keys), self._gated(place, own, values)
        return None

    def tables(
        self, rows: Sequence[int], tokens: int, frozen: PositionTables, relative: Tensor | None
    ) -> PositionTables:
        """The position tables of rows that share their edits of them; each row's own if any.

        Args:
            rows: of one group.
            tokens: of each, padding counted.
            frozen: the layer's.
            relative: what the tables are projections of, distance rising. [2M-1, H]
        """
        changed = {getattr(edit, "site", None) for _, edit, _ in self._attention_of(rows)}
        if relative is None or changed.isdisjoint(POSITION_SITES):
            return frozen
        middle = len(relative) // 2
        source = relative[middle - tokens + 1 : middle + tokens]
        short = frozen.for_length(tokens)
        scale = self._batch.query_scale
        return PositionTables(
            key=self._table("position_key", rows, short.key, source.flip(0)),
            query=self._table("position_query", rows, short.query, source, scale),
        )

    def bottleneck(
        self, outer: Tensor, attended: Tensor, normalise: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The feed-forward block's output, before it is added to ``attended``. [N, H]"""
        for place, edit, carriers in self._of(Bottleneck):
            own = carriers.take(outer)
            read = normalise(own + carriers.take(attended))
            self._read_gate(place, edit, carriers, read, taken=True)
            inner = functional.relu(
                carriers.product(read, edit.down[:, self._index])
                + carriers.spread(edit.down_bias[:, self._index])
            )
            added = carriers.product(inner, edit.up[:, self._index])
            added = added + carriers.spread(edit.up_bias[:, self._index])
            outer = carriers.put(outer, own + self._gated(place, carriers, added))
        return outer

    def _table(
        self,
        site: Site,
        rows: Sequence[int],
        frozen: Tensor | None,
        source: Tensor,
        scale: float = 1,
    ) -> Tensor | None:
        """[heads, 2T-1, D] -> [rows, heads, 2T-1, D]"""
        if frozen is None:
            return None
        found = frozen.transpose(0, 1).flatten(1).expand(len(rows), -1, -1)
        for place, edit, own in self._attention_of(rows):
            if isinstance(edit, LowRank | Shift | Scale) and edit.site == site:
                found = self._changed(place, edit, own, found, source, scale)
        heads: Tensor = found.unflatten(-1, (frozen.shape[0], -1))
        return heads.transpose(1, 2)

    def _attention_of(self, rows: Sequence[int]) -> Iterator[tuple[int, Edit, _Members]]:
        """What the attention of rows that share it reads of edits."""
        for place in self._batch.attention_of_row[rows[0]] if self._batch.carried else ():
            edit, carriers = self._batch.carried[place]
            yield place, edit, _Members(carriers, rows)

    def _reaches(self, site: str) -> bool:
        return any(
            isinstance(edit, LowRank | Shift | Scale) and edit.site == site and carriers.rows
            for edit, carriers in self._batch.carried
        )

    def _of(self, kind: type[Kind]) -> Iterator[tuple[int, Kind, _Carriers]]:
        for place, (edit, carriers) in enumerate(self._batch.carried):
            if isinstance(edit, kind) and carriers.rows:
                yield place, edit, carriers

    def _changed(
        self,
        place: int,
        edit: LowRank | Shift | Scale,
        on: _Carriers | _Members,
        own: Tensor,
        source: Tensor | None,
        scale: float,
    ) -> Tensor:
        if isinstance(edit, Scale):
            factor = on.spread(edit.factors[:, self._index]) - 1
            return own + own * self._gated(place, on, factor)
        if isinstance(edit, Shift):
            added = on.spread(edit.vectors[:, self._index])
        else:
            assert source is not None, f"{edit.site} is no linear map"
            low = on.product(source, edit.down[:, self._index])
            added = on.product(low, edit.up[:, self._index])
        return own + scale * self._gated(place, on, added).to(own.dtype)

    def _shift_special(
        self, hidden: Tensor, place: int, edit: SpecialTokenShift, carriers: _Carriers
    ) -> Tensor:
        tokens, rows, slots = carriers.special(edit.vectors.shape[2])
        vectors = edit.vectors[carriers.entries[rows], self._index, slots]
        vectors = functional.dropout(vectors, edit.dropout, training=edit.dropout > 0)
        if place in self._gates:
            vectors = self._gates[place][rows][:, None] * vectors
        return hidden.index_add(0, tokens, vectors.to(hidden.dtype))

    def _read_gate(
        self, place: int, edit: Edit, carriers: _Carriers, read: Tensor, *, taken: bool = False
    ) -> None:
        """``read`` is the batch's, or that of the carriers if it is ``taken`` already."""
        if edit.gate is None or not carriers.rows:
            return
        own = read if taken else carriers.take(read)
        weight, bias = edit.gate.weight[:, self._index], edit.gate.bias[:, self._index]
        logits = (own * carriers.spread(weight)).sum(-1) + carriers.spread(bias)
        self._gates[place] = carriers.mean(logits.sigmoid())

    def _gated(self, place: int, on: _Carriers | _Members, x: Tensor) -> Tensor:
        return on.spread_rows(self._gates[place]) * x if place in self._gates else x


class _Carriers:
    """The rows that carry an edit, and their tokens among the batch's."""

    def __init__(
        self,
        entries: Sequence[int],
        lengths: Sequence[int],
        special: Sequence[Sequence[int]],
        device: torch.device,
    ) -> None:
        self.rows = [row for row, entry in enumerate(entries) if entry >= 0]
        self._device = device
        self._starts = [0, *accumulate(lengths)]
        self._special = special
        self._own_lengths = [lengths[row] for row in self.rows]
        self._all = len(self.rows) == len(lengths)
        used = [entries[row] for row in self.rows]
        #: Rows that all carry one entry need no product of their own each.
        self._only = used[0] if len(set(used)) == 1 else None
        self.entries = torch.tensor(used, dtype=torch.int64, device=device)
        self.lengths = torch.tensor(self._own_lengths, dtype=torch.int64, device=device)

    @cached_property
    def _tokens(self) -> Tensor:
        spans = [torch.arange(self._starts[row], self._starts[row + 1]) for row in self.rows]
        return torch.cat(spans).to(self._device)

    def take(self, x: Tensor) -> Tensor:
        """Their tokens. [N, D] -> [M, D]"""
        return x if self._all else x.index_select(0, self._tokens)

    def put(self, x: Tensor, own: Tensor) -> Tensor:
        """``x`` [N, D] with their tokens replaced."""
        return own.to(x.dtype) if self._all else x.index_copy(0, self._tokens, own.to(x.dtype))

    def spread_rows(self, of_rows: Tensor) -> Tensor:
        """Each token's row. [rows] -> [M, 1]"""
        return of_rows.repeat_interleave(self.lengths)[:, None]

    def spread(self, of_entries: Tensor) -> Tensor:
        """Each token's entry, or the one of all tokens. [S, …] -> [M, …] or [1, …]"""
        if self._only is not None:
            return of_entries[self._only : self._only + 1]
        return of_entries[self.entries.repeat_interleave(self.lengths)]

    def product(self, x: Tensor, weights: Tensor) -> Tensor:
        """Each row's linear map. [M, in], [S, out, in] -> [M, out]"""
        if self._only is not None:
            return functional.linear(x, weights[self._only].to(x.dtype))
        padded, mask = unpack(x, self._own_lengths)
        return torch.bmm(padded, weights[self.entries].to(x.dtype).transpose(1, 2))[mask]

    def mean(self, x: Tensor) -> Tensor:
        """Over the tokens of each row. [M] -> [rows]"""
        row = torch.arange(len(self.rows), device=x.device).repeat_interleave(self.lengths)
        return x.new_zeros(len(self.rows)).index_add(0, row, x) / self.lengths

    def special(self, slots: int) -> tuple[Tensor, Tensor, Tensor]:
        """Their special tokens: place in the batch, whose, which slot. Three of [P]"""
        found = [
            (self._starts[row] + place, own, slot)
            for own, row in enumerate(self.rows)
            for slot, place in enumerate(self._special[row][:slots])
        ]
        places = torch.tensor(found, dtype=torch.int64).reshape(-1, 3).T.to(self._device)
        tokens, rows, numbers = places.unbind(0)
        return tokens, rows, numbers


class _Members:
    """Some of the rows that carry an edit, each with something of its own that is no token's."""

    def __init__(self, carriers: _Carriers, rows: Sequence[int]) -> None:
        self._places = [carriers.rows.index(row) for row in rows]
        self.entries = carriers.entries[self._places]

    def spread_rows(self, of_rows: Tensor) -> Tensor:
        """[all that carry it] -> [rows, 1, 1]"""
        return of_rows[self._places][:, None, None]

    def spread(self, of_entries: Tensor) -> Tensor:
        """[S, …] -> [rows, 1, …]"""
        return of_entries[self.entries].unsqueeze(1)

    def product(self, x: Tensor, weights: Tensor) -> Tensor:
        """Each row's linear map, of one matrix or one each. [.., in], [S, out, in] -> [.., out]"""
        return x @ weights[self.entries].to(x.dtype).transpose(1, 2)


#: A batch that no adapter edits.
UNEDITED = BatchEdits((), (), (), 1.0, torch.device("cpu"))
