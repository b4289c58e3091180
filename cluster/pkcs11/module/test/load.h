/* Loads a PKCS #11 module, as an application does. */
#ifndef LOAD_H
#define LOAD_H

#include "cryptoki.h"

/* The function list of version 2.40; ends the program when there is none. */
CK_FUNCTION_LIST *load(const char *path);
/* A symbol of the module; ends the program when there is none. */
void *load_symbol(const char *path, const char *name);
/* The first slot with a token; ends the program when there is none. */
CK_SLOT_ID first_slot(CK_FUNCTION_LIST *f);

#endif
