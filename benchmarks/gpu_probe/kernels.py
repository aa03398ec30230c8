"""The probe's kernels, in the PTX that every GPU since sm_80 takes."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_uint, c_uint64, c_void_p

from gpu_probe.device import Device
from gpu_probe.driver import CudaError, MissingError

THREADS = 256
BEAT_WORDS = 7  # that a beat writes, of 64 bits each
BEATS, LONGEST_NS, LATE_NS, LATE_COUNT, BEGAN_NS, ENDED_NS, SHORTEST_NS = range(BEAT_WORDS)

# work: each thread multiplies and adds `rounds` times.
# stream: the grid reads `count` pieces of 16 bytes, `rounds` times.
# fill: writes `value` to `count` words of 32 bits. count: adds how many of them are not `value`.
# beat: one thread reads a word again and again, `stride` words further each time, for
# `duration_ns`, and says how long it had to wait; a gap over 20 us is late.
PTX = b""".version 7.0
.target sm_80
.address_size 64

.visible .entry gpupool_probe_work(.param .u64 out, .param .u32 rounds)
{
 .reg .pred %p<3>;
 .reg .b32 %r<5>;
 .reg .f32 %f<4>;
 .reg .b64 %rd<3>;
 ld.param.u64 %rd1, [out];
 ld.param.u32 %r1, [rounds];
 mov.u32 %r2, %tid.x;
 cvt.rn.f32.u32 %f1, %r2;
 mov.f32 %f2, 0f3F7FFF00;
LOOP:
 setp.eq.u32 %p1, %r1, 0;
 @%p1 bra DONE;
 fma.rn.f32 %f1, %f1, %f2, %f2;
 fma.rn.f32 %f1, %f1, %f2, %f2;
 fma.rn.f32 %f1, %f1, %f2, %f2;
 fma.rn.f32 %f1, %f1, %f2, %f2;
 sub.u32 %r1, %r1, 1;
 bra LOOP;
DONE:
 setp.ne.f32 %p2, %f1, 0fBF800000;
 @%p2 bra END;
 st.global.f32 [%rd1], %f1;
END:
 ret;
}

.visible .entry gpupool_probe_stream(.param .u64 memory, .param .u64 count, .param .u32 rounds)
{
 .reg .pred %p<4>;
 .reg .b32 %r<11>;
 .reg .b64 %rd<8>;
 ld.param.u64 %rd1, [memory];
 ld.param.u64 %rd2, [count];
 ld.param.u32 %r1, [rounds];
 mov.u32 %r2, %ctaid.x;
 mov.u32 %r3, %ntid.x;
 mov.u32 %r4, %tid.x;
 mov.u32 %r5, %nctaid.x;
 mad.lo.u32 %r4, %r2, %r3, %r4;
 mul.lo.u32 %r5, %r5, %r3;
 cvt.u64.u32 %rd3, %r4;
 cvt.u64.u32 %rd4, %r5;
 mov.u32 %r10, 0;
ROUND:
 setp.eq.u32 %p1, %r1, 0;
 @%p1 bra DONE;
 mov.u64 %rd5, %rd3;
PIECE:
 setp.ge.u64 %p2, %rd5, %rd2;
 @%p2 bra NEXT;
 shl.b64 %rd6, %rd5, 4;
 add.u64 %rd6, %rd1, %rd6;
 ld.volatile.global.v4.u32 {%r6, %r7, %r8, %r9}, [%rd6];
 xor.b32 %r10, %r10, %r6;
 xor.b32 %r10, %r10, %r7;
 xor.b32 %r10, %r10, %r8;
 xor.b32 %r10, %r10, %r9;
 add.u64 %rd5, %rd5, %rd4;
 bra PIECE;
NEXT:
 sub.u32 %r1, %r1, 1;
 bra ROUND;
DONE:
 setp.ne.u32 %p3, %r10, 0x5EED5EED;
 @%p3 bra END;
 st.global.u32 [%rd1], %r10;
END:
 ret;
}

.visible .entry gpupool_probe_fill(.param .u64 memory, .param .u64 count, .param .u32 value)
{
 .reg .pred %p<2>;
 .reg .b32 %r<6>;
 .reg .b64 %rd<6>;
 ld.param.u64 %rd1, [memory];
 ld.param.u64 %rd2, [count];
 ld.param.u32 %r1, [value];
 mov.u32 %r2, %ctaid.x;
 mov.u32 %r3, %ntid.x;
 mov.u32 %r4, %tid.x;
 mov.u32 %r5, %nctaid.x;
 mad.lo.u32 %r4, %r2, %r3, %r4;
 mul.lo.u32 %r5, %r5, %r3;
 cvt.u64.u32 %rd3, %r4;
 cvt.u64.u32 %rd4, %r5;
LOOP:
 setp.ge.u64 %p1, %rd3, %rd2;
 @%p1 bra END;
 shl.b64 %rd5, %rd3, 2;
 add.u64 %rd5, %rd1, %rd5;
 st.global.u32 [%rd5], %r1;
 add.u64 %rd3, %rd3, %rd4;
 bra LOOP;
END:
 ret;
}

.visible .entry gpupool_probe_count(.param .u64 memory, .param .u64 count, .param .u32 value,
 .param .u64 out)
{
 .reg .pred %p<3>;
 .reg .b32 %r<8>;
 .reg .b64 %rd<9>;
 ld.param.u64 %rd1, [memory];
 ld.param.u64 %rd2, [count];
 ld.param.u32 %r1, [value];
 ld.param.u64 %rd6, [out];
 mov.u32 %r2, %ctaid.x;
 mov.u32 %r3, %ntid.x;
 mov.u32 %r4, %tid.x;
 mov.u32 %r5, %nctaid.x;
 mad.lo.u32 %r4, %r2, %r3, %r4;
 mul.lo.u32 %r5, %r5, %r3;
 cvt.u64.u32 %rd3, %r4;
 cvt.u64.u32 %rd4, %r5;
LOOP:
 setp.ge.u64 %p1, %rd3, %rd2;
 @%p1 bra END;
 shl.b64 %rd5, %rd3, 2;
 add.u64 %rd5, %rd1, %rd5;
 ld.volatile.global.u32 %r6, [%rd5];
 add.u64 %rd3, %rd3, %rd4;
 setp.eq.u32 %p2, %r6, %r1;
 @%p2 bra LOOP;
 mov.u64 %rd7, 1;
 atom.global.add.u64 %rd8, [%rd6], %rd7;
 bra LOOP;
END:
 ret;
}

.visible .entry gpupool_probe_beat(.param .u64 memory, .param .u64 count, .param .u64 stride,
 .param .u64 duration_ns, .param .u64 out)
{
 .reg .pred %p<7>;
 .reg .b32 %r<2>;
 .reg .b64 %rd<20>;
 ld.param.u64 %rd1, [memory];
 ld.param.u64 %rd2, [count];
 ld.param.u64 %rd3, [stride];
 ld.param.u64 %rd4, [duration_ns];
 ld.param.u64 %rd5, [out];
 mov.u64 %rd6, 0;
 mov.u64 %rd7, 0;
 mov.u64 %rd8, 0;
 mov.u64 %rd9, 0;
 mov.u64 %rd10, 0;
 mov.u64 %rd16, 1000000000;
 mov.u64 %rd11, %globaltimer;
 mov.u64 %rd12, %rd11;
 st.volatile.global.u64 [%rd5+32], %rd11;
 membar.sys;
LOOP:
 shl.b64 %rd13, %rd10, 2;
 add.u64 %rd13, %rd1, %rd13;
 ld.volatile.global.u32 %r1, [%rd13];
 setp.eq.u32 %p1, %r1, 0xFFFFFFFF;
 @%p1 bra DONE;
 mov.u64 %rd14, %globaltimer;
 sub.u64 %rd15, %rd14, %rd12;
 mov.u64 %rd12, %rd14;
 add.u64 %rd6, %rd6, 1;
 max.u64 %rd7, %rd7, %rd15;
 setp.eq.u64 %p2, %rd15, 0;
 @%p2 bra LATE;
 min.u64 %rd16, %rd16, %rd15;
LATE:
 setp.le.u64 %p3, %rd15, 20000;
 @%p3 bra ON;
 add.u64 %rd8, %rd8, %rd15;
 add.u64 %rd9, %rd9, 1;
ON:
 add.u64 %rd10, %rd10, %rd3;
 setp.lt.u64 %p4, %rd10, %rd2;
 @%p4 bra INSIDE;
 sub.u64 %rd10, %rd10, %rd2;
INSIDE:
 sub.u64 %rd17, %rd14, %rd11;
 setp.lt.u64 %p5, %rd17, %rd4;
 @%p5 bra LOOP;
DONE:
 st.volatile.global.u64 [%rd5], %rd6;
 st.volatile.global.u64 [%rd5+8], %rd7;
 st.volatile.global.u64 [%rd5+16], %rd8;
 st.volatile.global.u64 [%rd5+24], %rd9;
 st.volatile.global.u64 [%rd5+40], %rd12;
 st.volatile.global.u64 [%rd5+48], %rd16;
 ret;
}
"""

ENTRIES = ("work", "stream", "fill", "count", "beat")


def load(device: Device) -> c_void_p:
    """The module, compiled by the driver for its GPU."""
    module = c_void_p()
    device.cu("cuModuleLoadData", byref(module), PTX)
    return module


class Kernels:
    """Those of a module in the current context."""

    def __init__(self, device: Device) -> None:
        self._cu, self._module = device.cu, load(device)
        self._functions: dict[str, c_void_p] = {}

    def launch(
        self,
        name: str,
        stream: c_void_p,
        *parameters: c_uint | c_uint64,
        blocks: int = 1,
        threads: int = THREADS,
    ) -> None:
        """Ask a stream for one."""
        if name not in self._functions:
            function = c_void_p()
            try:
                entry = f"gpupool_probe_{name}".encode()
                self._cu("cuModuleGetFunction", byref(function), self._module, entry)
            except CudaError as error:
                raise MissingError(f"this driver has no kernel {name} ({error})") from None
            self._functions[name] = function
        places = [ctypes.cast(ctypes.pointer(each), c_void_p) for each in parameters]
        array = (c_void_p * len(places))(*places)
        sizes = (blocks, 1, 1, threads, 1, 1, 0)
        self._cu("cuLaunchKernel", self._functions[name], *sizes, stream, array, None)
