/* Where the daemon listens, in this order:
 *
 *   HSMBACKUP_PKCS11_SOCKET   the path of the socket, or unix:path=PATH
 *   P11_KIT_SERVER_ADDRESS    unix:path=PATH, as the stock client has it
 *   /etc/hsmbackup/pkcs11.conf    a line "socket = PATH"
 *   /run/hsmbackup/pkcs11.sock
 *
 * A variable that is set and names no absolute path is an error, not a reason to look
 * further: the PIN would go to another daemon than was meant.
 *
 * How many seconds the daemon has for a call is HSMBACKUP_PKCS11_TIMEOUT, or a line
 * "timeout = SECONDS", or BOUND. Whether it makes the IVs of AES-GCM that are all zeros
 * is HSMBACKUP_PKCS11_GCM_IV, "hsm" or "caller", or a line "gcm-iv = ...", or hsm.
 *
 * In programs that run with more rights than their user has, the variables are not
 * read. */
#include "module.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef CONFIG_FILE
#define CONFIG_FILE "/etc/hsmbackup/pkcs11.conf"
#endif
#ifndef DEFAULT_SOCKET
#define DEFAULT_SOCKET "/run/hsmbackup/pkcs11.sock"
#endif
#define SCHEME "unix:path="
#define BOUND 300
#define LONGEST 86400

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* decode replaces %2F and the like, in place. */
static bool decode(char *s)
{
	char *to = s;
	for (; *s != '\0'; s++) {
		if (*s == '%') {
			int high = hex(s[1]), low = high < 0 ? -1 : hex(s[2]);
			if (low < 0 || (high == 0 && low == 0))
				return false;
			*to++ = (char)(high << 4 | low);
			s += 2;
		} else {
			*to++ = *s;
		}
	}
	*to = '\0';
	return true;
}

/* path_of gives the absolute path that an address stands for, or NULL. */
static char *path_of(const char *address, bool plain)
{
	bool url = strncmp(address, SCHEME, sizeof SCHEME - 1) == 0;
	if (!url && !plain)
		return NULL;
	char *path = strdup(url ? address + sizeof SCHEME - 1 : address);
	if (path != NULL && (!url || decode(path)) && path[0] == '/')
		return path;
	free(path);
	return NULL;
}

static char *trim(char *s)
{
	while (isspace((unsigned char)*s))
		s++;
	char *end = s + strlen(s);
	while (end > s && isspace((unsigned char)end[-1]))
		*--end = '\0';
	return s;
}

/* configured is the value that the configuration file has for a name, or NULL. */
static char *configured(const char *name)
{
	char line[512], *found = NULL;
	FILE *f = fopen(CONFIG_FILE, "re");
	if (f == NULL)
		return NULL;
	while (found == NULL && fgets(line, sizeof line, f) != NULL) {
		char *value = strchr(line, '=');
		if (line[0] == '#' || value == NULL)
			continue;
		*value++ = '\0';
		if (strcmp(trim(line), name) == 0)
			found = strdup(trim(value));
	}
	fclose(f);
	return found;
}

char *daemon_address(void)
{
	const char *own = secure_getenv("HSMBACKUP_PKCS11_SOCKET");
	if (own != NULL)
		return path_of(own, true);
	const char *stock = secure_getenv("P11_KIT_SERVER_ADDRESS");
	if (stock != NULL)
		return path_of(stock, false);
	char *value = configured("socket");
	if (value == NULL)
		return strdup(DEFAULT_SOCKET);
	char *path = path_of(value, true);
	free(value);
	return path;
}

/* seconds_of is 0 for what is no number of seconds from 1 to LONGEST. */
static int seconds_of(const char *text)
{
	int n = 0;
	for (; *text >= '0' && *text <= '9' && n <= LONGEST; text++)
		n = 10 * n + (*text - '0');
	return *text == '\0' && n <= LONGEST ? n : 0;
}

int daemon_bound(void)
{
	const char *own = secure_getenv("HSMBACKUP_PKCS11_TIMEOUT");
	if (own != NULL)
		return seconds_of(own);
	char *value = configured("timeout");
	int seconds = value == NULL ? BOUND : seconds_of(value);
	free(value);
	return seconds;
}

bool daemon_makes_iv(bool *makes)
{
	const char *own = secure_getenv("HSMBACKUP_PKCS11_GCM_IV");
	char *value = own == NULL ? configured("gcm-iv") : NULL;
	const char *who = own != NULL ? own : value != NULL ? value : "hsm";
	bool valid = strcmp(who, "hsm") == 0 || strcmp(who, "caller") == 0;
	*makes = strcmp(who, "hsm") == 0;
	free(value);
	return valid;
}
