"""Four rANS lanes in a vector register: what `rans.decode_points` does for most symbols, in vector instructions.

Numba has no vectors, and its compiler makes none of a loop that looks symbols up, so this is LLVM's own language:
integers only, the same on every machine. It needs no particular processor; where there is an instruction that deals
consecutive words to chosen lanes (AVX-512), it is used.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

WIDTH = 4
#: Not what it is to a type checker: what it decorates takes all arguments but the first.
intrinsic: Any = numba_intrinsic
_SLOT_BITS, _SYMBOL_BITS, _WORD_BITS, _SYMBOL_ZERO = 12, 8, 16, 128

_WORD, _INDEX = ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_WORD, WIDTH)
_BITS = ir.IntType(WIDTH)


class Register(types.Type):
    """A vector of WIDTH uint32."""

    def __init__(self) -> None:
        super().__init__(name="rans.Register")


@register_model(Register)
class _RegisterModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, _VECTOR)


register = Register()


def _all(value: int) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * WIDTH)


def _spread(builder, value):
    """A uint32 in every lane."""
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _WORD(0))
    return builder.shuffle_vector(first, first, _all(0))


def _at(context, builder, signature, arguments, which: int, index):
    """Address of an element of the array that is argument `which`."""
    array = context.make_array(signature.args[which])(context, builder, arguments[which])
    return builder.gep(array.data, [index])


def _read(builder, address, element: ir.Type, count: int = WIDTH):
    """Elements side by side."""
    return builder.load(builder.bitcast(address, ir.VectorType(element, count).as_pointer()), align=1)


def _write(builder, value, address) -> None:
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=1)


@intrinsic
def load(typing_context, array, index):
    """The register of uint32 array[index : index + WIDTH]."""

    def code(context, builder, signature, arguments):
        return _read(builder, _at(context, builder, signature, arguments, 0, arguments[1]), _WORD)

    return register(array, types.uint64), code


@intrinsic
def store(typing_context, value, array, index):
    """Write a register to uint32 array[index : index + WIDTH]."""

    def code(context, builder, signature, arguments):
        _write(builder, arguments[0], _at(context, builder, signature, arguments, 1, arguments[2]))
        return context.get_dummy_value()

    return types.none(value, array, types.uint64), code


def _has_expansion(context) -> bool:
    """Whether the processor that is compiled for has AVX-512; `NUMBA_CPU_NAME` may say another than the one at hand."""
    return "+avx512vl" in context.codegen().magic_tuple()[2].split(",")


def symbols_intrinsic(expand: bool | None = None):
    """The intrinsic `four_symbols`, with or without AVX-512's expansion, or where the processor has that."""

    @intrinsic
    def four_symbols(typing_context, x, s, words, at, classes, t, coded, step, slots, points, out):
        """Decode the next symbol of four lanes, as `rans.decode_points` would.

        Parameters
        ----------
        x, s : Register
            States of the lanes, and of their trellises.
        words : uint16[:]; at : uint64
            2 * WIDTH words from `at` on may be read.
        classes : uint8[:]; t : uint64
            Those of elements t to t + WIDTH - 1.
        coded : uint32 or None
            None if no class is above the highest with a table of its own, which makes shorter code.
        step, slots, points
            See `rans.decode_points`.
        out : float32[:]
            Elements t to t + WIDTH - 1 are written.

        Returns
        -------
        x, s, at : after it
        escaped : bool
            One of the symbols is an escape: nothing returned or written means anything.
        """
        some_are_raw = not isinstance(coded, types.NoneType)

        def code(context, builder, signature, arguments):
            b = builder
            x, s, _, at, _, t, coded, *_ = arguments
            expanding = _has_expansion(context) if expand is None else expand

            def address(which, index):
                return _at(context, b, signature, arguments, which, index)

            def gather(which, index, element):
                found = ir.Constant(ir.VectorType(element, WIDTH), ir.Undefined)
                for lane in range(WIDTH):
                    place = b.zext(b.extract_element(index, _WORD(lane)), _INDEX)
                    found = b.insert_element(found, b.load(address(which, place)), _WORD(lane))
                return found

            def deal(lows, at):
                """Words for the lanes that have run low, lane by lane, and of each lane in the order of `lows`."""
                count = len(lows)
                if not expanding:
                    dealt = [ir.Constant(_VECTOR, ir.Undefined)] * count
                    for lane in range(WIDTH):
                        for i, low in enumerate(lows):
                            word = b.zext(b.load(address(2, at)), _WORD)
                            dealt[i] = b.insert_element(dealt[i], word, _WORD(lane))
                            at = b.add(at, b.zext(b.extract_element(low, _WORD(lane)), _INDEX))
                    return dealt, at
                size = count * WIDTH
                places = [[lane * count + i for lane in range(WIDTH)] for i in range(count)]
                order = [i * WIDTH + lane for lane in range(WIDTH) for i in range(count)]
                low = b.shuffle_vector(lows[0], lows[-1], ir.Constant(ir.VectorType(_WORD, size), order))
                wide, mask = ir.VectorType(_WORD, size), ir.VectorType(ir.IntType(1), size)
                name, function = f"llvm.x86.avx512.mask.expand.v{size}i32", ir.FunctionType(wide, [wide, wide, mask])
                expansion = cgutils.get_or_insert_function(b.module, function, name)
                following = b.zext(_read(b, address(2, at), ir.IntType(16), size), wide)
                every = b.call(expansion, [following, ir.Constant(wide, [0] * size), low])
                at = b.add(at, b.zext(b.ctpop(b.bitcast(low, ir.IntType(size))), _INDEX))
                return [b.shuffle_vector(every, every, ir.Constant(_VECTOR, place)) for place in places], at

            def refilled(x, low, word):
                return b.select(low, b.or_(b.shl(x, _all(_WORD_BITS)), word), x)

            union = b.and_(s, _all(1))
            of_class = b.zext(_read(b, address(4, t), ir.IntType(8)), _VECTOR)
            of_table = union
            if some_are_raw:
                coded = _spread(b, coded)
                raw = b.icmp_unsigned(">", of_class, coded)
                bits = b.lshr(b.add(b.sub(of_class, coded), _all(7)), _all(3))
                bits = b.select(raw, bits, _all(0))
                of_class = b.sub(of_class, b.shl(bits, _all(3)))
                of_table = b.select(raw, _all(1), union)
            table = b.or_(b.shl(of_class, _all(1)), of_table)
            slot_mask = _all((1 << _SLOT_BITS) - 1)
            entry = gather(8, b.or_(b.shl(table, _all(_SLOT_BITS)), b.and_(x, slot_mask)), _WORD)
            inside = b.and_(b.lshr(entry, _all(_SLOT_BITS)), slot_mask)
            x = b.add(b.mul(b.and_(entry, slot_mask), b.lshr(x, _all(_SLOT_BITS))), inside)
            lows = [b.icmp_unsigned("<", x, _all(1 << _WORD_BITS))]
            if some_are_raw:
                # Whether raw bits will want a word as well shows before the first has come.
                least = b.select(lows[0], _all(1), _all(1 << _WORD_BITS))
                lows.append(b.and_(raw, b.icmp_unsigned("<", b.lshr(x, bits), least)))
            dealt, at = deal(lows, at)
            x = refilled(x, lows[0], dealt[0])
            symbol = k = b.lshr(entry, _all(2 * _SLOT_BITS))
            point = gather(9, b.or_(b.shl(table, _all(_SYMBOL_BITS)), symbol), ir.FloatType())
            if some_are_raw:
                low_bits = b.and_(x, b.sub(b.shl(_all(1), bits), _all(1)))
                k = b.or_(b.shl(b.sub(symbol, _all(_SYMBOL_ZERO)), bits), low_bits)
                x = refilled(b.lshr(x, bits), lows[1], dealt[1])
                nominal = b.sitofp(b.add(b.shl(k, _all(1)), union), point.type)
                point = b.select(raw, nominal, point)
            _write(b, point, address(10, t))

            # The trellis is linear: a state's successor is that of its upper bits, of its lowest and of the parity.
            ahead = b.lshr(s, _all(1))
            for bit, index in ((union, 2), (b.and_(k, _all(1)), 1)):
                part = _spread(b, b.zext(b.load(address(7, _INDEX(index))), _WORD))
                ahead = b.xor(ahead, b.and_(b.neg(bit), part))
            escaped = b.icmp_unsigned("!=", b.bitcast(b.icmp_unsigned("==", symbol, _all(0)), _BITS), _BITS(0))
            return context.make_tuple(b, signature.return_type, (x, ahead, at, escaped))

        result = types.Tuple((register, register, types.uint64, types.boolean))
        return result(x, s, words, types.uint64, classes, types.uint64, coded, step, slots, points, out), code

    return four_symbols


four_symbols = symbols_intrinsic()
