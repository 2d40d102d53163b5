"""Four rANS lanes in a vector register: what `rans.decode_points` does for most symbols, in vector instructions.

Numba has no vectors, and its compiler makes none of a loop that looks symbols up, so this is LLVM's own language:
integers only, the same on every machine. It needs no particular processor; where there is an instruction that deals
consecutive words to chosen lanes (AVX-512), it is used.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

WIDTH = 4
#: Not what it is to a type checker: what it decorates takes all arguments but the first.
intrinsic: Any = numba_intrinsic
_SLOT_BITS, _SYMBOL_BITS, _WORD_BITS = 12, 8, 16

_WORD, _INDEX = ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_WORD, WIDTH)
_MASK = ir.VectorType(ir.IntType(1), WIDTH)
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


def _read(builder, address, element: ir.Type):
    """WIDTH elements side by side."""
    return builder.load(builder.bitcast(address, ir.VectorType(element, WIDTH).as_pointer()), align=1)


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


def symbols_intrinsic(expand: bool):
    """The intrinsic `four_symbols`, with or without AVX-512's expansion."""

    @intrinsic
    def four_symbols(typing_context, x, s, words, at, classes, t, coded, step, slots, points, out):
        """Decode the next symbol of four lanes, as `rans.decode_points` would.

        Parameters
        ----------
        x, s : Register
            States of the lanes, and of their trellises.
        words : uint16[:]; at : uint64
            WIDTH words from `at` on may be read.
        classes : uint8[:]; t : uint64
            Those of elements t to t + WIDTH - 1.
        coded : uint32; step, slots, points
            See `rans.decode_points`.
        out : float32[:]
            Elements t to t + WIDTH - 1 are written.

        Returns
        -------
        x, s, at : after it
        escaped : bool
            One of the symbols is an escape or of a class above `coded`: nothing returned or written means anything.
        """

        def code(context, builder, signature, arguments):
            b = builder
            x, s, _, at, _, t, coded, *_ = arguments

            def address(which, index):
                return _at(context, b, signature, arguments, which, index)

            def gather(which, index, element):
                found = ir.Constant(ir.VectorType(element, WIDTH), ir.Undefined)
                for lane in range(WIDTH):
                    place = b.zext(b.extract_element(index, _WORD(lane)), _INDEX)
                    found = b.insert_element(found, b.load(address(which, place)), _WORD(lane))
                return found

            union = b.and_(s, _all(1))
            of_class = b.zext(_read(b, address(4, t), ir.IntType(8)), _VECTOR)
            beyond = b.icmp_unsigned(">", of_class, _spread(b, coded))
            # A class without tables reads those of class 0, to no avail.
            of_class = b.select(beyond, _all(0), of_class)
            table = b.or_(b.shl(of_class, _all(1)), union)
            slot_mask = _all((1 << _SLOT_BITS) - 1)
            entry = gather(8, b.or_(b.shl(table, _all(_SLOT_BITS)), b.and_(x, slot_mask)), _WORD)
            inside = b.and_(b.lshr(entry, _all(_SLOT_BITS)), slot_mask)
            x = b.add(b.mul(b.and_(entry, slot_mask), b.lshr(x, _all(_SLOT_BITS))), inside)
            symbol = b.lshr(entry, _all(2 * _SLOT_BITS))

            # Lanes that have run low take a word each, in their order.
            low = b.icmp_unsigned("<", x, _all(1 << _WORD_BITS))
            if expand:
                function = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, _MASK])
                name = f"llvm.x86.avx512.mask.expand.v{WIDTH}i32"
                following = b.zext(_read(b, address(2, at), ir.IntType(16)), _VECTOR)
                expansion = cgutils.get_or_insert_function(b.module, function, name)
                word = b.call(expansion, [following, _all(0), low])
                at = b.add(at, b.zext(b.ctpop(b.bitcast(low, _BITS)), _INDEX))
            else:
                word = ir.Constant(_VECTOR, ir.Undefined)
                for lane in range(WIDTH):
                    word = b.insert_element(word, b.zext(b.load(address(2, at)), _WORD), _WORD(lane))
                    at = b.add(at, b.zext(b.extract_element(low, _WORD(lane)), _INDEX))
            x = b.select(low, b.or_(b.shl(x, _all(_WORD_BITS)), word), x)

            point = gather(9, b.or_(b.shl(table, _all(_SYMBOL_BITS)), symbol), ir.FloatType())
            _write(b, point, address(10, t))

            # The trellis is linear: a state's successor is that of its upper bits, of its lowest and of the parity.
            ahead = b.lshr(s, _all(1))
            for bit, index in ((union, 2), (b.and_(symbol, _all(1)), 1)):
                part = _spread(b, b.zext(b.load(address(7, _INDEX(index))), _WORD))
                ahead = b.xor(ahead, b.and_(b.neg(bit), part))
            special = b.or_(beyond, b.icmp_unsigned("==", symbol, _all(0)))
            escaped = b.icmp_unsigned("!=", b.bitcast(special, _BITS), _BITS(0))
            return context.make_tuple(b, signature.return_type, (x, ahead, at, escaped))

        result = types.Tuple((register, register, types.uint64, types.boolean))
        return result(x, s, words, types.uint64, classes, types.uint64, types.uint32, step, slots, points, out), code

    return four_symbols


four_symbols = symbols_intrinsic(expand=bool(llvmlite.binding.get_host_cpu_features().get("avx512vl", False)))
