// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* memcg_bpf_ops as posted in bpf-next RFC v7. */
#define FORM 7
#include "memcg_ops.bpf.h"
