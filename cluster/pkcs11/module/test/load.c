#include "load.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *load_symbol(const char *path, const char *name)
{
	void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	void *symbol = module == NULL ? NULL : dlsym(module, name);
	if (symbol == NULL) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	return symbol;
}

CK_FUNCTION_LIST *load(const char *path)
{
	CK_RV (*get)(CK_FUNCTION_LIST **);
	CK_FUNCTION_LIST *list = NULL;
	void *symbol = load_symbol(path, "C_GetFunctionList");
	memcpy(&get, &symbol, sizeof get);
	if (get(&list) != CKR_OK || list == NULL) {
		fprintf(stderr, "%s: no function list\n", path);
		exit(1);
	}
	return list;
}

CK_SLOT_ID first_slot(CK_FUNCTION_LIST *f)
{
	CK_SLOT_ID slots[64];
	CK_ULONG n = 64;
	CK_RV rv = f->C_GetSlotList(CK_TRUE, slots, &n);
	CK_TOKEN_INFO info = {0};
	CK_RV said = CKR_OK;
	for (CK_ULONG i = 0; rv == CKR_OK && i < n; i++)
		if ((said = f->C_GetTokenInfo(slots[i], &info)) == CKR_OK && (info.flags & 0x400) != 0) /* initialised */
			return slots[i];
	fprintf(stderr, "%lu slots, the last said 0x%lx, flags 0x%lx\n", n, said, info.flags);
	fprintf(stderr, "no slot with a token (0x%lx)\n", rv);
	exit(1);
}
