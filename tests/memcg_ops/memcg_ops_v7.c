// SPDX-License-Identifier: GPL-2.0
/* memcg_bpf_ops as posted in bpf-next RFC v7. */
#define FORM 7
#include "provider.h"
