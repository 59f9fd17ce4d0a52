/* slots.h - weight slots that architectures share (private to model). */
#ifndef SLUICE_MODEL_SLOTS_H
#define SLUICE_MODEL_SLOTS_H

#include "weights.h"

extern const struct weight_slot embedding_slots[3];    /* embedding, final norm, head */
extern const struct weight_slot decoder_slots[9];      /* norms, q | k | v, o, gate | up, down */
extern const struct weight_slot qkv_bias_slots[3];     /* where attention_bias */

#endif
