// SPDX-License-Identifier: GPL-2.0
/* memcg_bpf_ops as posted in bpf-next RFC v6. */
#define FORM 6
#include "provider.h"
