// Loading cuDNN.
#include "cairn/kernels/cuda/dnn_api.h"

#include "cairn/tensor/cuda/library.h"

namespace cairn::kernels::cuda {

bool load_dnn(DnnApi* api, std::string* why) {
  cairn::cuda::Library library("cuDNN", cat("libcudnn.so.", CUDNN_MAJOR));
  library.find_as(&api->version, "cudnnGetVersion");
  library.find_as(&api->error_string, "cudnnGetErrorString");
  library.find_as(&api->last_error, "cudnnGetLastErrorString");
  library.find_as(&api->create, "cudnnCreate");
  library.find_as(&api->set_stream, "cudnnSetStream");
  library.find_as(&api->backend_create, "cudnnBackendCreateDescriptor");
  library.find_as(&api->backend_destroy, "cudnnBackendDestroyDescriptor");
  library.find_as(&api->set, "cudnnBackendSetAttribute");
  library.find_as(&api->get, "cudnnBackendGetAttribute");
  library.find_as(&api->finalize, "cudnnBackendFinalize");
  library.find_as(&api->execute, "cudnnBackendExecute");
  *why = library.why();
  return library.complete();
}

void check_dnn(const DnnApi& api, cudnnStatus_t status, const char* call) {
  if (status == CUDNN_STATUS_SUCCESS) [[likely]]
    return;
  char text[512] = "";
  api.last_error(text, sizeof text);
  fail(call, ": cuDNN call must succeed, got ", api.error_string(status),
       text[0] == '\0' ? "" : ": ", text);
}

}  // namespace cairn::kernels::cuda
