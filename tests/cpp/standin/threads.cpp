// The calls about what each thread has of its own: its current context and its capture mode.
#include "standin/cuda_names.h"
#include "standin/state.h"

using gpupool::standin::State;

extern "C" {

CUresult CUDAAPI cuCtxGetCurrent(CUcontext* context) {
  const int refused = State::get().enter("cuCtxGetCurrent", false);
  if (refused == 0) *context = static_cast<CUcontext>(State::get().current());
  return static_cast<CUresult>(refused);
}

CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
  const int refused = State::get().enter("cuCtxSetCurrent", false);
  return static_cast<CUresult>(refused != 0 ? refused : State::get().set_current(context));
}

CUresult CUDAAPI cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  const int refused = State::get().enter("cuThreadExchangeStreamCaptureMode", false);
  if (refused != 0) return static_cast<CUresult>(refused);
  if (static_cast<int>(*mode) < 0 || static_cast<int>(*mode) > 2) return static_cast<CUresult>(1);
  *mode = static_cast<CUstreamCaptureMode>(State::get().exchange_mode(static_cast<int>(*mode)));
  return static_cast<CUresult>(0);
}

}  // extern "C"
